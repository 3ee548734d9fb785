package dev.walcast;

/** Makes a native value from a value as PostgreSQL prints it. */
@FunctionalInterface
public interface Decoder {
    /**
     * Decodes one value that is not NULL.
     *
     * @param text as PostgreSQL prints it
     * @return the native value
     * @throws IllegalArgumentException if the text is none, which ends the subscription
     */
    Object decode(String text);
}

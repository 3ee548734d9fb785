package dev.walcast;

/**
 * A valid PostgreSQL value that the Java type cannot hold: infinite dates, years before 1, 24:00:00, NaN and infinity of
 * numeric.
 *
 * @param typeName PostgreSQL's type
 * @param text as PostgreSQL prints it
 */
public record Unrepresentable(String typeName, String text) {

    /**
     * Whether it is infinity or -infinity.
     *
     * @return whether it is
     */
    public boolean isInfinite() {
        return text.equalsIgnoreCase("infinity") || text.equalsIgnoreCase("-infinity");
    }

    /**
     * Whether it is a date before the year 1.
     *
     * @return whether it is
     */
    public boolean isBc() {
        return text.endsWith(" BC");
    }

    @Override
    public String toString() {
        return text;
    }
}

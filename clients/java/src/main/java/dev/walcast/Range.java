package dev.walcast;

/**
 * A range. Of an empty range both bounds are null, and an unbounded side is null.
 *
 * @param lower lower bound
 * @param upper upper bound
 * @param lowerInclusive whether the lower bound belongs to it
 * @param upperInclusive whether the upper bound belongs to it
 * @param empty whether it holds nothing
 */
public record Range(Object lower, Object upper, boolean lowerInclusive, boolean upperInclusive, boolean empty) {

    /** The empty range. */
    public static final Range EMPTY = new Range(null, null, false, false, true);

    @Override
    public String toString() {
        if (empty) {
            return "empty";
        }
        return (lowerInclusive ? "[" : "(")
                + (lower == null ? "" : lower)
                + ","
                + (upper == null ? "" : upper)
                + (upperInclusive ? "]" : ")");
    }
}

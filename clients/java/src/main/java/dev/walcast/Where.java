package dev.walcast;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.time.temporal.TemporalAccessor;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import java.util.UUID;
import java.util.stream.Collectors;

/**
 * Equality of columns as a predicate: {@code Where.column("status", "paid").and("region", List.of("eu", "us"))}. A
 * collection is IN, null is IS NULL, and all of them hold together. {@link #toString} is the predicate.
 */
public final class Where {
    private final List<String> terms = new ArrayList<>();

    private Where() {}

    /**
     * A column that equals a value.
     *
     * @param name of the column, unquoted
     * @param value a value, a collection of them, or null
     * @return the predicate
     */
    public static Where column(String name, Object value) {
        return new Where().and(name, value);
    }

    /**
     * And another column that equals a value.
     *
     * @param name of the column, unquoted
     * @param value a value, a collection of them, or null
     * @return this
     * @throws IllegalArgumentException if there is no literal for the value
     */
    public Where and(String name, Object value) {
        String column = identifier(name);
        if (value == null) {
            terms.add(column + " IS NULL");
        } else if (value instanceof Collection<?> several) {
            if (several.isEmpty()) {
                throw new IllegalArgumentException(name + ": IN needs at least one value");
            }
            terms.add(several.stream().map(Where::literal).collect(Collectors.joining(", ", column + " IN (", ")")));
        } else {
            terms.add(column + " = " + literal(value));
        }
        return this;
    }

    /**
     * A column's name, quoted as PostgreSQL does.
     *
     * @param name unquoted
     * @return quoted
     */
    public static String identifier(String name) {
        return '"' + name.replace("\"", "\"\"") + '"';
    }

    /**
     * A value, quoted as PostgreSQL does.
     *
     * @param value of a type that rows hold
     * @return the literal
     * @throws IllegalArgumentException if there is none for its type
     */
    public static String literal(Object value) {
        if (value == null) {
            return "NULL";
        }
        if (value instanceof Boolean) {
            return value.toString().toUpperCase(java.util.Locale.ROOT);
        }
        if (value instanceof Long
                || value instanceof Integer
                || value instanceof Short
                || value instanceof BigInteger
                || value instanceof Double number && Double.isFinite(number)) {
            return value.toString();
        }
        if (value instanceof BigDecimal decimal) {
            return "'" + decimal.toPlainString() + "'";
        }
        if (value instanceof CharSequence
                || value instanceof Double
                || value instanceof UUID
                || value instanceof TemporalAccessor
                || value instanceof Unrepresentable) {
            return "'" + value.toString().replace("'", "''") + "'";
        }
        throw new IllegalArgumentException("no literal for " + value.getClass().getSimpleName());
    }

    @Override
    public String toString() {
        return String.join(" AND ", terms);
    }
}

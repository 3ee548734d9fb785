package dev.walcast;

import java.math.BigDecimal;
import java.time.Instant;
import java.util.AbstractMap;
import java.util.AbstractSet;
import java.util.Arrays;
import java.util.Iterator;
import java.util.Map;
import java.util.NoSuchElementException;
import java.util.Objects;
import java.util.Set;

/**
 * A row by column name, unmodifiable, in the table's order of columns. NULL is null, a value that PostgreSQL did not send is
 * {@link Unchanged#UNCHANGED}, and a column that is not known has no entry.
 */
public final class Row extends AbstractMap<String, Object> {
    static final Object ABSENT = new Object();

    private final Relation relation;
    private final Object[] values;

    Row(Relation relation, Object[] values) {
        this.relation = relation;
        this.values = values;
    }

    private Object at(Object name) {
        Integer at = relation.index.get(name);
        return at == null ? ABSENT : values[at];
    }

    @Override
    public Object get(Object name) {
        Object value = at(name);
        return value == ABSENT ? null : value;
    }

    @Override
    public boolean containsKey(Object name) {
        return at(name) != ABSENT;
    }

    @Override
    public int size() {
        int count = 0;
        for (Object value : values) {
            if (value != ABSENT) {
                count++;
            }
        }
        return count;
    }

    /**
     * The value as the type that is expected.
     *
     * @param name of the column
     * @param type of the value
     * @param <T> of the value
     * @return null for NULL
     * @throws NoSuchElementException if the column has no entry
     * @throws ClassCastException if the value is of another type, {@link Unchanged} for instance
     */
    public <T> T get(String name, Class<T> type) {
        Object value = at(name);
        if (value == ABSENT) {
            throw new NoSuchElementException(relation.table() + " has no value for " + name);
        }
        return type.cast(value);
    }

    /**
     * An int2, int4, int8 or oid.
     *
     * @param name of the column
     * @return null for NULL
     */
    public Long getLong(String name) {
        return get(name, Long.class);
    }

    /**
     * Text.
     *
     * @param name of the column
     * @return null for NULL
     */
    public String getString(String name) {
        return get(name, String.class);
    }

    /**
     * A numeric.
     *
     * @param name of the column
     * @return null for NULL
     */
    public BigDecimal getDecimal(String name) {
        return get(name, BigDecimal.class);
    }

    /**
     * A bool.
     *
     * @param name of the column
     * @return null for NULL
     */
    public Boolean getBoolean(String name) {
        return get(name, Boolean.class);
    }

    /**
     * A timestamptz.
     *
     * @param name of the column
     * @return null for NULL
     */
    public Instant getInstant(String name) {
        return get(name, Instant.class);
    }

    /**
     * Whether PostgreSQL did not send the value because the update did not touch it.
     *
     * @param name of the column
     * @return whether it is {@link Unchanged#UNCHANGED}
     */
    public boolean isUnchanged(String name) {
        return at(name) == Unchanged.UNCHANGED;
    }

    /** Equal by names and values; bytes by content. */
    @Override
    public boolean equals(Object other) {
        if (other instanceof Row row && Arrays.equals(relation.names, row.relation.names)) {
            return Arrays.deepEquals(values, row.values);
        }
        return super.equals(other);
    }

    @Override
    public int hashCode() {
        int sum = 0;
        for (int at = 0; at < values.length; at++) {
            if (values[at] != ABSENT) {
                Object value = values[at];
                int hash = value instanceof byte[] bytes ? Arrays.hashCode(bytes) : Objects.hashCode(value);
                sum += relation.names[at].hashCode() ^ hash;
            }
        }
        return sum;
    }

    @Override
    public Set<Map.Entry<String, Object>> entrySet() {
        return new AbstractSet<>() {
            @Override
            public int size() {
                return Row.this.size();
            }

            @Override
            public Iterator<Map.Entry<String, Object>> iterator() {
                return new Entries();
            }
        };
    }

    private final class Entries implements Iterator<Map.Entry<String, Object>> {
        private int at;

        @Override
        public boolean hasNext() {
            while (at < values.length && values[at] == ABSENT) {
                at++;
            }
            return at < values.length;
        }

        @Override
        public Map.Entry<String, Object> next() {
            if (!hasNext()) {
                throw new NoSuchElementException();
            }
            int here = at++;
            return new SimpleImmutableEntry<>(relation.names[here], values[here]);
        }
    }
}

package dev.walcast;

import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import walcast.v1.EventOuterClass;

/** One immutable version of a table. */
public final class Relation {
    private final EventOuterClass.Relation message;
    private final String table;
    private final List<Column> columns;
    private final ReplicaIdentity replicaIdentity;
    private final Decoder[] decoders;
    final String[] names;
    final Map<String, Integer> index;

    Relation(EventOuterClass.Relation message, Map<String, Decoder> decoders) {
        this.message = message;
        this.table = message.getSchema() + "." + message.getTable();
        int count = message.getColumnsCount();
        List<Column> list = new ArrayList<>(count);
        this.decoders = new Decoder[count];
        this.names = new String[count];
        this.index = new HashMap<>();
        for (int at = 0; at < count; at++) {
            EventOuterClass.Column column = message.getColumns(at);
            list.add(new Column(
                    column.getName(),
                    column.getTypeName(),
                    Integer.toUnsignedLong(column.getTypeOid()),
                    column.getTypeModifier(),
                    column.getInIdentity()));
            this.decoders[at] = decoders.get(column.getTypeName());
            this.names[at] = column.getName();
            this.index.put(column.getName(), at);
        }
        this.columns = Collections.unmodifiableList(list);
        this.replicaIdentity = switch (message.getReplicaIdentity()) {
            case REPLICA_IDENTITY_FULL -> ReplicaIdentity.FULL;
            case REPLICA_IDENTITY_INDEX -> ReplicaIdentity.INDEX;
            case REPLICA_IDENTITY_NOTHING -> ReplicaIdentity.NOTHING;
            default -> ReplicaIdentity.DEFAULT;
        };
    }

    /**
     * The hub's number of this version, valid within one stream.
     *
     * @return from 1
     */
    public int relationId() {
        return message.getRelationId();
    }

    /**
     * pg_class.oid.
     *
     * @return unsigned
     */
    public long oid() {
        return Integer.toUnsignedLong(message.getOid());
    }

    /**
     * The schema.
     *
     * @return unquoted
     */
    public String schema() {
        return message.getSchema();
    }

    /**
     * The table's name without its schema.
     *
     * @return unquoted
     */
    public String name() {
        return message.getTable();
    }

    /**
     * The table.
     *
     * @return {@code schema.table}, unquoted
     */
    public String table() {
        return table;
    }

    /**
     * Which columns old rows hold.
     *
     * @return the replica identity
     */
    public ReplicaIdentity replicaIdentity() {
        return replicaIdentity;
    }

    /**
     * The selected columns.
     *
     * @return in the table's order
     */
    public List<Column> columns() {
        return columns;
    }

    @Override
    public String toString() {
        return table + " (version " + relationId() + ")";
    }

    /** A value that came as text. */
    Object text(int column, String text) {
        Decoder decoder = decoders[column];
        if (decoder == null) {
            return text;
        }
        try {
            return decoder.decode(text);
        } catch (IllegalArgumentException | ArithmeticException | IndexOutOfBoundsException error) {
            String where =
                    table + "." + names[column] + " (" + columns.get(column).typeName() + ")";
            throw new WalcastException.Protocol(where + ": " + text + ": " + error.getMessage(), error);
        }
    }
}

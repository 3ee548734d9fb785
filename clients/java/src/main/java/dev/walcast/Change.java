package dev.walcast;

import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import walcast.v1.EventOuterClass;

/** What happened to one row, or to a table in the case of a truncate. Rows are decoded when first looked at. */
public final class Change implements Event {
    private static final Row UNREAD = new Row(null, new Object[0]);

    private final Transaction transaction;
    private final Relation relation;
    private final RawChange raw;
    private final EventOuterClass.Truncate truncate;
    private final Operation operation;
    private Row before = UNREAD;
    private Row after = UNREAD;

    Change(Transaction transaction, Relation relation, RawChange raw) {
        this.transaction = transaction;
        this.relation = relation;
        this.raw = raw;
        this.truncate = null;
        this.operation = Operation.of(raw.operation);
    }

    Change(Transaction transaction, Relation relation, EventOuterClass.Truncate truncate) {
        this.transaction = transaction;
        this.relation = relation;
        this.raw = null;
        this.truncate = truncate;
        this.operation = Operation.TRUNCATE;
    }

    /** How a changed row stands to the subscription's predicate. */
    public enum Transition {
        /** Matches now, did not before. */
        ENTER,
        /** Matches before and after. */
        STAY,
        /** Matched before, does not now. */
        LEAVE
    }

    /**
     * The same whenever this change comes again.
     *
     * @param lineage of the transaction
     * @param commitLsn of the transaction
     * @param sequence of the transaction
     * @param ordinal in the transaction
     */
    public record Identity(String lineage, String commitLsn, long sequence, long ordinal) {}

    /**
     * The transaction that it belongs to.
     *
     * @return the transaction
     */
    public Transaction transaction() {
        return transaction;
    }

    /**
     * The table's version that the rows fit.
     *
     * @return with names and types of its columns
     */
    public Relation relation() {
        return relation;
    }

    /**
     * What happened.
     *
     * @return the operation
     */
    public Operation operation() {
        return operation;
    }

    /**
     * The table.
     *
     * @return {@code schema.table}, unquoted
     */
    public String table() {
        return relation.table();
    }

    /**
     * Number in its transaction, counted before filtering.
     *
     * @return from 1; 0 for rows of a snapshot
     */
    public long ordinal() {
        return raw == null ? truncate.getOrdinal() : raw.ordinal;
    }

    /**
     * The row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of.
     *
     * @return null where it is not known
     */
    public Row before() {
        if (before == UNREAD) {
            before = raw != null && raw.hasBefore() ? raw.before(relation) : null;
        }
        return before;
    }

    /**
     * The row as it is.
     *
     * @return null for a delete or truncate
     */
    public Row after() {
        if (after == UNREAD) {
            after = raw != null && raw.hasAfter() ? raw.after(relation) : null;
        }
        return after;
    }

    /**
     * The columns of the replica identity, of the old row where there is one.
     *
     * @return empty if the table has none
     */
    public Map<String, Object> key() {
        Row row = before() != null ? before() : after();
        Map<String, Object> key = new LinkedHashMap<>();
        for (Column column : relation.columns()) {
            if (row != null && column.inIdentity() && row.containsKey(column.name())) {
                key.put(column.name(), row.get(column.name()));
            }
        }
        return Collections.unmodifiableMap(key);
    }

    /**
     * Columns whose value an update changed.
     *
     * @return null where the old row is not known whole, which needs REPLICA IDENTITY FULL
     */
    public List<String> changedColumns() {
        boolean known = operation == Operation.UPDATE
                && relation.replicaIdentity() == ReplicaIdentity.FULL
                && raw.hasBefore()
                && raw.hasAfter();
        List<String> changed = known ? raw.changed(relation) : null;
        return changed == null ? null : Collections.unmodifiableList(changed);
    }

    /**
     * How the row stands to the subscription's predicate before and after.
     *
     * @return null without a predicate
     */
    public Transition transition() {
        return switch (raw == null ? 0 : raw.transition) {
            case EventOuterClass.Transition.TRANSITION_ENTER_VALUE -> Transition.ENTER;
            case EventOuterClass.Transition.TRANSITION_STAY_VALUE -> Transition.STAY;
            case EventOuterClass.Transition.TRANSITION_LEAVE_VALUE -> Transition.LEAVE;
            default -> null;
        };
    }

    /**
     * Where the transaction's commit record starts; the compact form carries no LSN per change.
     *
     * @return {@code X/Y}
     */
    public String commitLsn() {
        return transaction.commitLsn();
    }

    /**
     * Whether a truncate was CASCADE.
     *
     * @return false for other operations
     */
    public boolean isCascade() {
        return truncate != null && truncate.getCascade();
    }

    /**
     * Whether a truncate was RESTART IDENTITY.
     *
     * @return false for other operations
     */
    public boolean isRestartIdentity() {
        return truncate != null && truncate.getRestartIdentity();
    }

    /**
     * The same whenever this change comes again.
     *
     * @return lineage, commit LSN, sequence and ordinal
     */
    public Identity identity() {
        return new Identity(transaction.lineage(), transaction.commitLsn(), transaction.sequence(), ordinal());
    }

    @Override
    public String toString() {
        return operation + " " + table() + " " + (after() != null ? after() : before());
    }
}

package dev.walcast;

import com.google.protobuf.ByteString;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import walcast.v1.EventOuterClass;
import walcast.v1.EventOuterClass.Missing;
import walcast.v1.EventOuterClass.Value;

/** What happened to one row, or to a table in the case of a truncate. Rows are decoded when first looked at. */
public final class Change implements Event {
    private static final Row UNREAD = new Row(null, new Object[0]);

    private final Transaction transaction;
    private final Relation relation;
    private final EventOuterClass.Change message;
    private final EventOuterClass.Truncate truncate;
    private final Operation operation;
    private Row before = UNREAD;
    private Row after = UNREAD;

    Change(Transaction transaction, Relation relation, EventOuterClass.Change message) {
        this.transaction = transaction;
        this.relation = relation;
        this.message = message;
        this.truncate = null;
        this.operation = Operation.of(message);
    }

    Change(Transaction transaction, Relation relation, EventOuterClass.Truncate truncate) {
        this.transaction = transaction;
        this.relation = relation;
        this.message = EventOuterClass.Change.getDefaultInstance();
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
        return truncate != null ? truncate.getOrdinal() : message.getOrdinal();
    }

    /**
     * The row as it was: for a delete, and for an update that PostgreSQL sent the old row or key of.
     *
     * @return null where it is not known
     */
    public Row before() {
        if (before == UNREAD) {
            before = message.hasBeforeRow() ? relation.decode(message.getBeforeRow()) : null;
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
            after = message.hasAfterRow() ? relation.decode(message.getAfterRow()) : null;
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
        if (operation != Operation.UPDATE
                || relation.replicaIdentity() != ReplicaIdentity.FULL
                || !message.hasBeforeRow()
                || !message.hasAfterRow()) {
            return null;
        }
        List<String> changed = new ArrayList<>();
        for (int at = 0; at < relation.columns().size(); at++) {
            Value old = message.getBeforeRow().getValues(at);
            Value now = message.getAfterRow().getValues(at);
            if (now.getMissing() == Missing.MISSING_UNCHANGED) {
                continue;
            }
            if (old.getMissing() == Missing.MISSING_ABSENT) {
                return null;
            }
            if (!same(old, now)) {
                changed.add(relation.columns().get(at).name());
            }
        }
        return Collections.unmodifiableList(changed);
    }

    private static boolean same(Value old, Value now) {
        ByteString bytes = old.toByteString();
        return bytes.equals(now.toByteString());
    }

    /**
     * How the row stands to the subscription's predicate before and after.
     *
     * @return null without a predicate
     */
    public Transition transition() {
        return switch (message.getTransition()) {
            case TRANSITION_ENTER -> Transition.ENTER;
            case TRANSITION_STAY -> Transition.STAY;
            case TRANSITION_LEAVE -> Transition.LEAVE;
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

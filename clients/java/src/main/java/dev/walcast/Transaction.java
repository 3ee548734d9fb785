package dev.walcast;

import java.time.Instant;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import walcast.v1.EventOuterClass;

/**
 * A committed transaction with the changes that the subscription selects of it. A logical message outside transactions comes
 * as one without changes; rows of a snapshot come as some that name it.
 */
public final class Transaction implements Iterable<Change> {
    private final String commitLsn;
    private final String lineage;
    private final long sequence;
    private final long xid;
    private final Instant commitTime;
    private final String origin;
    private final String snapshotId;
    long totalChanges;
    Position position;
    long serial;
    Core core;
    Map<Integer, Relation> relations = Map.of();
    final List<Object> events = new ArrayList<>();
    private List<Change> changes;

    Transaction(
            String commitLsn,
            String lineage,
            long sequence,
            long xid,
            Instant commitTime,
            String origin,
            String snapshotId) {
        this.commitLsn = commitLsn;
        this.lineage = lineage;
        this.sequence = sequence;
        this.xid = xid;
        this.commitTime = commitTime;
        this.origin = origin;
        this.snapshotId = snapshotId;
    }

    /**
     * The same whenever this transaction comes again.
     *
     * @param lineage of the transaction
     * @param commitLsn of the transaction
     * @param sequence of the transaction
     */
    public record Identity(String lineage, String commitLsn, long sequence) {}

    /**
     * Where the commit record starts; the LSN of a message outside transactions.
     *
     * @return {@code X/Y}
     */
    public String commitLsn() {
        return commitLsn;
    }

    /**
     * One unbroken course of history.
     *
     * @return 16 hexadecimal digits
     */
    public String lineage() {
        return lineage;
    }

    /**
     * 0 for transactions from the slot.
     *
     * @return from 0
     */
    public long sequence() {
        return sequence;
    }

    /**
     * PostgreSQL's xid8.
     *
     * @return 0 for a message outside transactions and for rows of a snapshot
     */
    public long xid() {
        return xid;
    }

    /**
     * By the source's clock.
     *
     * @return null for messages outside transactions and for rows of a snapshot
     */
    public Instant commitTime() {
        return commitTime;
    }

    /**
     * Name of the replication origin.
     *
     * @return empty for transactions of the source itself
     */
    public String origin() {
        return origin;
    }

    /**
     * The snapshot that these rows belong to.
     *
     * @return empty for transactions
     */
    public String snapshotId() {
        return snapshotId;
    }

    /**
     * Events in the whole transaction, before filtering.
     *
     * @return from 0
     */
    public long totalChanges() {
        return totalChanges;
    }

    /**
     * Resume behind this transaction here: {@code Start.after(tx.position())}.
     *
     * @return the position
     * @throws WalcastException.Misuse for a transaction of {@code events()} before its commit
     */
    public Position position() {
        if (position == null) {
            throw new WalcastException.Misuse("the transaction has no position yet");
        }
        return position;
    }

    /**
     * The same whenever this transaction comes again.
     *
     * @return lineage, commit LSN and sequence
     */
    public Identity identity() {
        return new Identity(lineage, commitLsn, sequence);
    }

    /**
     * Changes in order; a truncate of several tables is one change per table.
     *
     * @return unmodifiable
     */
    public List<Change> changes() {
        if (changes == null) {
            List<Change> list = new ArrayList<>(events.size());
            for (Object event : events) {
                if (event instanceof RawChange change) {
                    list.add(new Change(this, relations.get(change.relationId), change));
                } else if (event instanceof EventOuterClass.Truncate truncate) {
                    list.addAll(Messages.truncates(this, truncate, relations));
                }
            }
            changes = Collections.unmodifiableList(list);
        }
        return changes;
    }

    /**
     * Logical messages in it, in order.
     *
     * @return unmodifiable
     */
    public List<Message> messages() {
        return events.stream()
                .filter(EventOuterClass.LogicalMessage.class::isInstance)
                .map(message -> Messages.message((EventOuterClass.LogicalMessage) message))
                .toList();
    }

    @Override
    public Iterator<Change> iterator() {
        return changes().iterator();
    }

    /**
     * Everything up to and including this transaction is done. Returns at once; {@link Subscription#flush} waits until it is
     * durable. May be called from any thread.
     */
    public void ack() {
        if (core == null) {
            throw new WalcastException.Misuse("only transactions of a subscription can be acknowledged");
        }
        core.acknowledge(position(), serial);
    }

    @Override
    public String toString() {
        return "Transaction(" + commitLsn + ", xid " + xid + ", " + events.size() + " events)";
    }
}

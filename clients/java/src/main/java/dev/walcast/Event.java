package dev.walcast;

import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.Map;

/** One step of {@link Subscription#events}, and what hooks are given. Changes are events too. */
public sealed interface Event
        permits Change,
                Event.Begin,
                Event.Commit,
                Event.Discard,
                Event.MessageEvent,
                Event.Progress,
                Event.TimelineChanged,
                Event.Gap,
                Event.SnapshotBegin,
                Event.SnapshotTableEnd,
                Event.SnapshotEnd {

    /**
     * A transaction begins. Whether it happened is known with its Commit or Discard.
     *
     * @param transaction without its changes
     */
    record Begin(Transaction transaction) implements Event {}

    /**
     * The open transaction is complete.
     *
     * @param transaction without its changes
     */
    record Commit(Transaction transaction) implements Event {}

    /**
     * The open transaction never happened; drop what came since its Begin.
     *
     * @param transaction without its changes
     * @param reason for people
     */
    record Discard(Transaction transaction, String reason) implements Event {}

    /**
     * A logical message.
     *
     * @param transaction of its own outside transactions
     * @param message the message
     */
    record MessageEvent(Transaction transaction, Message message) implements Event {}

    /**
     * Every selected change at or before a position has been sent.
     *
     * @param position up to here, inclusive
     * @param tail the journal's last resume point
     * @param caughtUp whether position has reached tail
     * @param sourceConnected whether the hub streams from the source now
     * @param time the hub's clock; null if not sent
     * @param checkpoint the durable checkpoint of a named subscriber; null without
     * @param expiresIn when the position falls off the journal at the present rate; null while that is far
     */
    record Progress(
            Position position,
            Position tail,
            boolean caughtUp,
            boolean sourceConnected,
            Instant time,
            Position checkpoint,
            Duration expiresIn)
            implements Event {

        /**
         * WAL between the position and the journal's tail.
         *
         * @return in bytes; 0 across lineages
         */
        public long lagBytes() {
            if (!position.lineage().equals(tail.lineage())) {
                return 0;
            }
            return Math.max(0, Position.lsnToLong(tail.lsn()) - Position.lsnToLong(position.lsn()));
        }
    }

    /**
     * The source failed over: what the old lineage has from the switch on never happened.
     *
     * @param oldLineage that ended
     * @param newLineage that goes on
     * @param switchLsn where they part, {@code X/Y}
     * @param retracted transactions that this subscription may have received, oldest first
     * @param position where the new lineage goes on
     */
    record TimelineChanged(
            String oldLineage, String newLineage, String switchLsn, List<Retracted> retracted, Position position)
            implements Event {}

    /**
     * A transaction that a failover took back.
     *
     * @param transaction without its changes
     * @param position the resume point that its commit had
     * @param changes events in the whole transaction
     */
    record Retracted(Transaction transaction, Position position, long changes) {}

    /**
     * Changes are missing.
     *
     * @param after complete up to here (exclusive start of the range)
     * @param upTo complete again behind here (inclusive end of the range)
     * @param reason for people
     */
    record Gap(Position after, Position upTo, String reason) implements Event {}

    /**
     * A snapshot starts. Its rows come as transactions with its identifier and changes with {@link Operation#READ}.
     *
     * @param snapshotId names it
     * @param tables estimated rows by table; -1 where there is no estimate
     * @param restarted whether to drop the rows that an earlier attempt delivered
     */
    record SnapshotBegin(String snapshotId, Map<String, Long> tables, boolean restarted) implements Event {}

    /**
     * A snapshot has read one table to its end.
     *
     * @param snapshotId names it
     * @param table {@code schema.table}
     * @param rows that were sent
     */
    record SnapshotTableEnd(String snapshotId, String table, long rows) implements Event {}

    /**
     * A snapshot is complete.
     *
     * @param snapshotId names it
     * @param position changes follow from here
     * @param rows of all tables that were sent
     */
    record SnapshotEnd(String snapshotId, Position position, long rows) implements Event {}

    /**
     * How a stream was opened: {@link Subscription#opened}.
     *
     * @param after the stream holds what comes after it
     * @param earliest the oldest resume point that the journal retains
     * @param tail the journal's last resume point then
     * @param session fencing token of a named subscriber; 0 for an anonymous one
     * @param created whether the named subscriber is new
     * @param filterChanged whether the filter differs from the checkpoint's
     */
    record Opened(
            Position after, Position earliest, Position tail, long session, boolean created, boolean filterChanged) {}
}

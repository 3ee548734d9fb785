package dev.walcast;

import com.google.protobuf.InvalidProtocolBufferException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.HashMap;
import java.util.HashSet;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import walcast.v1.EventOuterClass;
import walcast.v1.Walcast.ConsumeResponse;

/**
 * Puts transactions together from the events of successive streams, and drops what came before. Responses go in
 * ({@link #receive}), items for the user ({@link Transaction} or {@link Event}) gather in {@link #ready}.
 */
final class Assembler {
    /** Which switch of timelines it was, however often it is told. */
    private record Fork(String oldLineage, String newLineage, String switchLsn) {}

    private static final int EVENTS = Wire.bytes(ConsumeResponse.EVENTS_FIELD_NUMBER);
    private static final int CHANGE = Wire.bytes(EventOuterClass.Event.CHANGE_FIELD_NUMBER);

    final Deque<Object> ready = new ArrayDeque<>();
    private final Map<String, Decoder> decoders;
    private final long maxTransactionBytes;
    /** Whether events are handed out as they come rather than whole transactions. */
    boolean streaming;
    /** The resume point. */
    Position received;
    /** How the present stream was opened, once it is. */
    Event.Opened opened;

    private Map<Integer, Relation> relations = new HashMap<>();
    private Transaction open;
    private long openBytes;
    private long ordinal;
    private long skipUntil;
    private Transaction interrupted;
    private long interruptedAt;
    private Transaction rows;
    private String snapshotId = "";
    private List<Event.Retracted> retracted = new ArrayList<>();
    private final Set<Fork> forks = new HashSet<>();
    private int counted;
    private int free;

    Assembler(Map<String, Decoder> decoders, long maxTransactionBytes) {
        this.decoders = decoders;
        this.maxTransactionBytes = maxTransactionBytes;
    }

    /** Whether a transaction has begun that is not complete. */
    boolean isWithinTransaction() {
        return open != null;
    }

    /** A new stream: part of a transaction comes again, and relations are numbered anew. */
    void reopen() {
        if (open != null && streaming) {
            interrupted = open;
            interruptedAt = Math.max(ordinal, skipUntil);
        }
        open = null;
        rows = null;
        openBytes = 0;
        skipUntil = 0;
        ordinal = 0;
        relations = new HashMap<>();
        retracted = new ArrayList<>();
    }

    /** Events that used credit in the response received last. */
    int counted() {
        return counted;
    }

    /** Bytes of the response received last that are free of credit. */
    int free() {
        return free;
    }

    /** A response, as its bytes. */
    void receive(byte[] response) {
        counted = 0;
        free = 0;
        Wire wire = new Wire(response, 0, response.length);
        while (wire.hasMore()) {
            int tag = wire.readTag();
            if (tag == EVENTS) {
                event(wire.readPart());
            } else {
                wire.skip(tag);
            }
        }
        flushRows();
        if (open != null && !streaming) {
            openBytes += response.length;
            if (openBytes > maxTransactionBytes) {
                throw new WalcastException.TransactionTooLarge("the transaction at " + open.commitLsn()
                        + " exceeds maxTransactionBytes; stream it with events()");
            }
        }
    }

    private void event(Wire wire) {
        int start = wire.at;
        if (wire.hasMore() && wire.readTag() == CHANGE) {
            Wire change = wire.readPart();
            if (!wire.hasMore()) {
                change(new RawChange(change));
                return;
            }
        }
        try {
            event(EventOuterClass.Event.parser().parseFrom(wire.bytes, start, wire.end - start));
        } catch (InvalidProtocolBufferException error) {
            throw new WalcastException.Protocol("a response is garbled", error);
        }
    }

    private void event(EventOuterClass.Event event) {
        switch (event.getKindCase()) {
            case CHANGE -> {
                byte[] bytes = event.getChange().toByteArray();
                change(new RawChange(new Wire(bytes, 0, bytes.length)));
            }
            case BEGIN -> begin(event.getBegin());
            case COMMIT -> commit(event.getCommit());
            case PROGRESS -> {
                free += Messages.framed(event.getSerializedSize());
                between("progress");
                Event.Progress progress = Messages.progress(event.getProgress());
                received = progress.position();
                ready.add(progress);
            }
            case RELATION -> relations.put(
                    event.getRelation().getRelationId(), new Relation(event.getRelation(), decoders));
            case TRUNCATE -> truncate(event.getTruncate());
            case MESSAGE -> message(event.getMessage());
            case DISCARD -> discard(event.getDiscard().getReason());
            case OPENED -> {
                free += Messages.framed(event.getSerializedSize());
                opened = Messages.opened(event.getOpened());
                if (received == null) {
                    received = opened.after();
                }
            }
            case TIMELINE_CHANGED -> {
                between("timeline_changed");
                timelineChanged(event.getTimelineChanged());
            }
            case GAP -> {
                between("gap");
                EventOuterClass.Gap gap = event.getGap();
                received = Position.of(gap.getUpTo());
                ready.add(new Event.Gap(Position.of(gap.getAfter()), received, gap.getReason()));
            }
            case SNAPSHOT_BEGIN, SNAPSHOT_TABLE_END, SNAPSHOT_END -> {
                between("a snapshot's event");
                snapshot(event);
            }
            default -> throw new WalcastException.Protocol(
                    "the hub sent an event of a kind that this version does not know");
        }
    }

    private void between(String kind) {
        if (open != null) {
            throw new WalcastException.Protocol(kind + " inside a transaction");
        }
        flushRows();
        settleInterrupted();
    }

    private void settleInterrupted() {
        if (interrupted != null) {
            ready.add(new Event.Discard(interrupted, "it did not come again after a reconnect"));
            interrupted = null;
        }
    }

    private void begin(EventOuterClass.Begin begin) {
        if (open != null) {
            throw new WalcastException.Protocol("a transaction begins inside another");
        }
        flushRows();
        Transaction transaction = Messages.transaction(begin);
        skipUntil = 0;
        ordinal = 0;
        if (interrupted != null && interrupted.identity().equals(transaction.identity())) {
            transaction = interrupted;
            skipUntil = interruptedAt;
            interrupted = null;
        } else {
            settleInterrupted();
            if (streaming) {
                ready.add(new Event.Begin(transaction));
            }
        }
        transaction.relations = relations;
        open = transaction;
        openBytes = 0;
    }

    private void commit(EventOuterClass.Commit commit) {
        Transaction transaction = open;
        if (transaction == null) {
            throw new WalcastException.Protocol("commit without begin");
        }
        open = null;
        Position position = Position.of(commit.getPosition());
        transaction.position = position;
        transaction.totalChanges = commit.getTotalChanges();
        if (received != null && received.reaches(position)) {
            if (streaming) {
                ready.add(new Event.Discard(transaction, "it came before"));
            }
            return;
        }
        received = position;
        ready.add(streaming ? new Event.Commit(transaction) : transaction);
    }

    private void discard(String reason) {
        if (open == null) {
            throw new WalcastException.Protocol("discard without begin");
        }
        if (streaming) {
            ready.add(new Event.Discard(open, reason));
        }
        open = null;
    }

    private void change(RawChange change) {
        counted++;
        Relation relation = relations.get(change.relationId);
        if (relation == null) {
            throw new WalcastException.Protocol(
                    "a change refers to relation " + change.relationId + ", which was not sent");
        }
        if (open != null && !streaming) {
            open.events.add(change);
        } else if (open != null) {
            if (Long.compareUnsigned(change.ordinal, skipUntil) > 0) {
                ready.add(new Change(open, relation, change));
                ordinal = change.ordinal;
            }
        } else if (change.operation != EventOuterClass.Operation.OPERATION_READ_VALUE) {
            throw new WalcastException.Protocol("a change outside a transaction");
        } else if (streaming) {
            ready.add(new Change(snapshotRows(), relation, change));
        } else {
            snapshotRows().events.add(change);
        }
    }

    private Transaction snapshotRows() {
        if (rows == null) {
            if (received == null) {
                throw new WalcastException.Protocol("a row before opened");
            }
            rows = alone(received.lsn(), received, snapshotId);
        }
        return rows;
    }

    private Transaction alone(String lsn, Position position, String snapshot) {
        Transaction made = new Transaction(lsn, position.lineage(), position.sequence(), 0, null, "", snapshot);
        made.position = position;
        made.relations = relations;
        return made;
    }

    private void flushRows() {
        if (rows != null && !streaming) {
            ready.add(rows);
        }
        rows = null;
    }

    private void truncate(EventOuterClass.Truncate truncate) {
        counted++;
        for (int number : truncate.getRelationIdsList()) {
            if (!relations.containsKey(number)) {
                throw new WalcastException.Protocol(
                        "a truncate refers to relation " + number + ", which was not sent");
            }
        }
        if (open == null) {
            throw new WalcastException.Protocol("a truncate outside a transaction");
        }
        if (!streaming) {
            open.events.add(truncate);
        } else if (Long.compareUnsigned(truncate.getOrdinal(), skipUntil) > 0) {
            ordinal = truncate.getOrdinal();
            ready.addAll(Messages.truncates(open, truncate, relations));
        }
    }

    private void message(EventOuterClass.LogicalMessage message) {
        counted++;
        if (open == null) {
            if (!message.hasPosition()) {
                throw new WalcastException.Protocol("a transactional message outside a transaction");
            }
            between("message");
            messageAlone(message);
        } else if (!streaming) {
            open.events.add(message);
        } else if (Long.compareUnsigned(message.getOrdinal(), skipUntil) > 0) {
            ordinal = message.getOrdinal();
            ready.add(new Event.MessageEvent(open, Messages.message(message)));
        }
    }

    private void messageAlone(EventOuterClass.LogicalMessage message) {
        Position position = Position.of(message.getPosition());
        if (received != null && received.reaches(position)) {
            return;
        }
        Transaction transaction = alone(message.getLsn(), position, "");
        transaction.totalChanges = 1;
        transaction.events.add(message);
        received = position;
        if (streaming) {
            ready.add(new Event.MessageEvent(transaction, Messages.message(message)));
            ready.add(new Event.Commit(transaction));
        } else {
            ready.add(transaction);
        }
    }

    private void snapshot(EventOuterClass.Event event) {
        if (event.hasSnapshotBegin()) {
            EventOuterClass.SnapshotBegin begin = event.getSnapshotBegin();
            snapshotId = begin.getSnapshotId();
            Map<String, Long> tables = new LinkedHashMap<>();
            begin.getTablesList().forEach(table -> tables.put(table.getTable(), table.getEstimatedRows()));
            ready.add(new Event.SnapshotBegin(snapshotId, tables, begin.getRestarted()));
        } else if (event.hasSnapshotTableEnd()) {
            EventOuterClass.SnapshotTableEnd end = event.getSnapshotTableEnd();
            ready.add(new Event.SnapshotTableEnd(end.getSnapshotId(), end.getTable(), end.getRows()));
        } else {
            EventOuterClass.SnapshotEnd end = event.getSnapshotEnd();
            received = Position.of(end.getPosition());
            ready.add(new Event.SnapshotEnd(end.getSnapshotId(), received, end.getRows()));
        }
    }

    private void timelineChanged(EventOuterClass.TimelineChanged changed) {
        for (EventOuterClass.Retracted entry : changed.getRetractedList()) {
            Transaction transaction = Messages.transaction(entry.getBegin());
            transaction.position = Position.of(entry.getPosition());
            retracted.add(new Event.Retracted(transaction, transaction.position, entry.getChanges()));
        }
        if (changed.getMore()) {
            return;
        }
        List<Event.Retracted> all = List.copyOf(retracted);
        retracted = new ArrayList<>();
        received = Position.of(changed.getPosition());
        Event.TimelineChanged event = new Event.TimelineChanged(
                changed.getOldLineage(), changed.getNewLineage(), changed.getSwitchLsn(), all, received);
        if (!forks.contains(fork(event))) {
            ready.add(event);
        }
    }

    /** The user was told, so the same switch is not told again. */
    void told(Event.TimelineChanged event) {
        forks.add(fork(event));
    }

    private static Fork fork(Event.TimelineChanged event) {
        return new Fork(event.oldLineage(), event.newLineage(), event.switchLsn());
    }
}

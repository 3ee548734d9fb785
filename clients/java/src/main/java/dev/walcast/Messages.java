package dev.walcast;

import com.google.protobuf.Duration;
import com.google.protobuf.Empty;
import com.google.protobuf.Timestamp;
import java.time.Instant;
import java.util.ArrayList;
import java.util.Collection;
import java.util.List;
import walcast.v1.EventOuterClass;
import walcast.v1.Walcast;

/** Between the protocol's messages and what users see. */
final class Messages {
    private Messages() {}

    static Walcast.Start start(Start start) {
        Walcast.Start.Builder message = Walcast.Start.newBuilder();
        if (start instanceof Start.Earliest) {
            message.setEarliest(Empty.getDefaultInstance());
        } else if (start instanceof Start.Latest) {
            message.setLatest(Empty.getDefaultInstance());
        } else if (start instanceof Start.After after) {
            message.setAfter(after.position().message());
        } else if (start instanceof Start.AfterLsn after) {
            message.setAfterLsn(after.lsn());
        } else if (start instanceof Start.Since since) {
            message.setSince(Timestamp.newBuilder()
                    .setSeconds(since.time().getEpochSecond())
                    .setNanos(since.time().getNano()));
        } else if (start instanceof Start.Snapshot snapshot) {
            message.setSnapshot(Walcast.SnapshotOptions.newBuilder()
                    .setMode(snapshot.mode().message())
                    .setMaxRowsPerSecond(snapshot.maxRowsPerSecond()));
        }
        return message.build();
    }

    static List<EventOuterClass.Operation> operations(Collection<Operation> operations) {
        return operations.stream().map(Operation::message).toList();
    }

    static Walcast.TableRule rule(Rule rule) {
        return Walcast.TableRule.newBuilder()
                .setTables(rule.tables())
                .addAllColumns(rule.columns())
                .setWhere(rule.where())
                .addAllOperations(operations(rule.operations()))
                .build();
    }

    static Instant instant(Timestamp time) {
        return Instant.ofEpochSecond(time.getSeconds(), time.getNanos());
    }

    static java.time.Duration duration(Duration duration) {
        return java.time.Duration.ofSeconds(duration.getSeconds(), duration.getNanos());
    }

    static Duration duration(java.time.Duration duration) {
        return Duration.newBuilder()
                .setSeconds(duration.getSeconds())
                .setNanos(duration.getNano())
                .build();
    }

    static Transaction transaction(EventOuterClass.Begin begin) {
        return new Transaction(
                begin.getCommitLsn(),
                begin.getLineage(),
                Integer.toUnsignedLong(begin.getSequence()),
                begin.getXid(),
                begin.hasCommitTime() ? instant(begin.getCommitTime()) : null,
                begin.getOrigin(),
                "");
    }

    static Message message(EventOuterClass.LogicalMessage message) {
        return new Message(
                message.getPrefix(), message.getContent().toByteArray(), message.getOrdinal(), message.getLsn());
    }

    static Event.Opened opened(EventOuterClass.Opened opened) {
        return new Event.Opened(
                Position.of(opened.getAfter()),
                Position.of(opened.getEarliest()),
                Position.of(opened.getTail()),
                opened.getSession(),
                opened.getCreated(),
                opened.getFilterChanged());
    }

    static Event.Progress progress(EventOuterClass.Progress progress) {
        return new Event.Progress(
                Position.of(progress.getPosition()),
                Position.of(progress.getTail()),
                progress.getCaughtUp(),
                progress.getSourceConnected(),
                progress.hasTime() ? instant(progress.getTime()) : null,
                progress.hasCheckpoint() ? Position.of(progress.getCheckpoint()) : null,
                progress.hasExpiresIn() ? duration(progress.getExpiresIn()) : null);
    }

    static List<Change> truncates(
            Transaction transaction, EventOuterClass.Truncate truncate, java.util.Map<Integer, Relation> relations) {
        List<Change> changes = new ArrayList<>(truncate.getRelationIdsCount());
        for (int number : truncate.getRelationIdsList()) {
            changes.add(new Change(transaction, relations.get(number), truncate));
        }
        return changes;
    }

    /** Bytes of an event of this size as an element of a response: tag, length and content. */
    static int framed(int size) {
        int length = 1;
        for (int rest = size >> 7; rest != 0; rest >>= 7) {
            length++;
        }
        return 1 + length + size;
    }
}

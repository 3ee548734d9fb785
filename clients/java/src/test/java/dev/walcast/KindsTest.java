package dev.walcast;

import static dev.walcast.ScriptedHub.all;
import static dev.walcast.ScriptedHub.begin;
import static dev.walcast.ScriptedHub.commit;
import static dev.walcast.ScriptedHub.insert;
import static dev.walcast.ScriptedHub.opened;
import static dev.walcast.ScriptedHub.position;
import static dev.walcast.ScriptedHub.relation;
import static dev.walcast.ScriptedHub.transaction;
import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.ByteString;
import dev.walcast.ScriptedHub.Script;
import java.io.IOException;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import walcast.v1.EventOuterClass;

/** What is not an ordinary change: rows of a snapshot, truncates, messages, gaps, and transactions that are too large. */
@Timeout(120)
class KindsTest {
    private static Script playing(Object... parts) {
        return connection -> connection.send(all(parts));
    }

    private static List<Long> ids(Transaction tx) {
        return tx.changes().stream().map(change -> change.after().getLong("id")).toList();
    }

    private static EventOuterClass.Event read(long id) {
        EventOuterClass.Change change = insert(0, id).getChange();
        return EventOuterClass.Event.newBuilder()
                .setChange(change.toBuilder().setOperation(EventOuterClass.Operation.OPERATION_READ))
                .build();
    }

    private static Script snapshot(boolean restarted) {
        EventOuterClass.Event begin = EventOuterClass.Event.newBuilder()
                .setSnapshotBegin(EventOuterClass.SnapshotBegin.newBuilder()
                        .setSnapshotId("s1")
                        .setRestarted(restarted))
                .build();
        EventOuterClass.Event end = EventOuterClass.Event.newBuilder()
                .setSnapshotEnd(EventOuterClass.SnapshotEnd.newBuilder()
                        .setSnapshotId("s1")
                        .setPosition(position(16))
                        .setRows(2))
                .build();
        return playing(opened(8, 0), begin, relation(), read(1), read(2), end, transaction(32, 1));
    }

    @Test
    void rowsOfASnapshotAreTransactionsThatNameIt() throws IOException {
        List<Event> told = new ArrayList<>();
        try (ScriptedHub hub = new ScriptedHub(snapshot(false));
                Client client = Client.of(hub.address());
                Subscription stream =
                        client.subscription().stopAtTail().onSnapshot(told::add).subscribe()) {
            Transaction rows = stream.next();
            assertEquals(List.of(1L, 2L), ids(rows));
            assertEquals("s1", rows.snapshotId());
            assertEquals(Operation.READ, rows.changes().get(0).operation());
            assertEquals(0, rows.xid());
            assertEquals(List.of(3200L), ids(stream.next()));
            assertEquals(2, told.size());
        }
        try (ScriptedHub hub = new ScriptedHub(snapshot(true));
                Client client = Client.of(hub.address());
                Subscription stream = client.subscription().stopAtTail().subscribe()) {
            assertThrows(WalcastException.SnapshotRestarted.class, stream::next);
        }
    }

    private static EventOuterClass.Event message(EventOuterClass.LogicalMessage.Builder message) {
        message.setPrefix("p").setContent(ByteString.copyFromUtf8("c")).setLsn("0/5");
        return EventOuterClass.Event.newBuilder().setMessage(message).build();
    }

    @Test
    void truncatesAndMessages() throws IOException {
        EventOuterClass.Event other = EventOuterClass.Event.newBuilder()
                .setRelation(
                        relation().getRelation().toBuilder().setRelationId(8).setTable("u"))
                .build();
        EventOuterClass.Event truncate = EventOuterClass.Event.newBuilder()
                .setTruncate(EventOuterClass.Truncate.newBuilder()
                        .addRelationIds(8)
                        .addRelationIds(7)
                        .setOrdinal(1)
                        .setCascade(true))
                .build();
        EventOuterClass.Event inside =
                message(EventOuterClass.LogicalMessage.newBuilder().setOrdinal(2));
        EventOuterClass.Event outside =
                message(EventOuterClass.LogicalMessage.newBuilder().setPosition(position(32)));
        Script script = playing(opened(0, 0), relation(), other, begin(16), truncate, inside, commit(16, 2), outside);
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address());
                Subscription stream = client.subscription().stopAtTail().subscribe()) {
            Transaction tx = stream.next();
            assertEquals(
                    List.of("public.u", "public.t"),
                    tx.changes().stream().map(Change::table).toList());
            assertTrue(tx.changes().get(1).isCascade());
            assertEquals(1, tx.messages().size());
            assertArrayEquals(new byte[] {'c'}, tx.messages().get(0).content());
            Transaction alone = stream.next();
            assertEquals(List.of(), alone.changes());
            assertEquals(1, alone.messages().size());
            assertEquals("0/20", alone.position().lsn());
        }
    }

    @Test
    void aGapCannotBeMissed() throws IOException {
        EventOuterClass.Event gap = EventOuterClass.Event.newBuilder()
                .setGap(EventOuterClass.Gap.newBuilder()
                        .setAfter(position(8))
                        .setUpTo(position(16))
                        .setReason("lost"))
                .build();
        try (ScriptedHub hub = new ScriptedHub(playing(opened(0, 0), gap, relation(), transaction(32, 1)));
                Client client = Client.of(hub.address());
                Subscription stream = client.subscription().stopAtTail().subscribe()) {
            WalcastException.Gap missed = assertThrows(WalcastException.Gap.class, stream::next);
            assertEquals("0/10", missed.event().upTo().lsn());
            assertEquals(List.of(3200L), ids(stream.next()));
        }
    }

    @Test
    void aTransactionThatIsTooLargeIsRefused() throws IOException {
        Script script = connection -> {
            connection.send(opened(0, 0), relation(), begin(16), insert(1, 1));
            connection.awaitEnd();
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address());
                Subscription stream =
                        client.subscription().maxTransactionBytes(10).subscribe()) {
            assertThrows(WalcastException.TransactionTooLarge.class, stream::next);
        }
    }
}

package dev.walcast;

import static dev.walcast.ScriptedHub.LINEAGE;
import static dev.walcast.ScriptedHub.all;
import static dev.walcast.ScriptedHub.begin;
import static dev.walcast.ScriptedHub.commit;
import static dev.walcast.ScriptedHub.insert;
import static dev.walcast.ScriptedHub.lost;
import static dev.walcast.ScriptedHub.opened;
import static dev.walcast.ScriptedHub.position;
import static dev.walcast.ScriptedHub.progress;
import static dev.walcast.ScriptedHub.refusal;
import static dev.walcast.ScriptedHub.relation;
import static dev.walcast.ScriptedHub.transaction;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.walcast.ScriptedHub.Script;
import io.grpc.Status;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Iterator;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.junit.jupiter.api.Assumptions;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import walcast.v1.EventOuterClass;

/** What a subscription does with a stream that breaks, repeats itself, or says something new: against scripted streams. */
@Timeout(120)
class SubscriptionTest {
    private static final Retry FAST = new Retry(Duration.ofMillis(1), Duration.ofMillis(10), null);

    private static final Script FIRST = connection -> {
        connection.send(all(opened(0, 0), relation(), transaction(16, 1), transaction(32, 2)));
        connection.send(begin(48), insert(1, 4800));
        throw lost();
    };

    private static final Script SECOND = connection -> {
        assertEquals(position(32), connection.open.getStart().getAfter(), "resumes behind what was received whole");
        connection.send(all(opened(32, 0), relation(), transaction(32, 2), transaction(48, 2), progress(64)));
    };

    private static Script refusing(Status.Code code, String reason, Double retry, String... metadata) {
        return connection -> {
            throw refusal(code, reason, retry, metadata);
        };
    }

    private static SubscriptionBuilder subscription(Client client) {
        return client.subscription().stopAtTail().retry(FAST);
    }

    private static List<List<Long>> ids(Subscription subscription) {
        return subscription.stream()
                .map(tx -> tx.changes().stream()
                        .map(change -> change.after().getLong("id"))
                        .toList())
                .toList();
    }

    @Test
    void aBrokenStreamGoesOnWithoutLossOrRepeat() throws IOException {
        List<HubException> losses = new ArrayList<>();
        try (ScriptedHub hub = new ScriptedHub(FIRST, SECOND);
                Client client = Client.of(hub.address())) {
            Subscription stream = subscription(client)
                    .start(Start.earliest())
                    .onReconnect((error, delay) -> losses.add(error))
                    .subscribe();
            assertEquals(List.of(List.of(1600L), List.of(3200L, 3201L), List.of(4800L, 4801L)), ids(stream));
            assertInstanceOf(HubException.ConnectionLost.class, losses.get(0));
            assertEquals(new Position("0/40", LINEAGE), stream.position());
        }
    }

    @Test
    void eventsContinueInsideATransaction() throws IOException {
        try (ScriptedHub hub = new ScriptedHub(FIRST, SECOND);
                Client client = Client.of(hub.address())) {
            List<Object> kinds = new ArrayList<>();
            for (Event event :
                    subscription(client).start(Start.earliest()).subscribe().events()) {
                kinds.add(
                        event instanceof Change change
                                ? change.after().get("id")
                                : event.getClass().getSimpleName());
            }
            assertEquals(
                    List.of(
                            "Begin",
                            1600L,
                            "Commit",
                            "Begin",
                            3200L,
                            3201L,
                            "Commit",
                            "Begin",
                            4800L,
                            "Discard",
                            "Begin",
                            3200L,
                            3201L,
                            "Discard",
                            "Begin",
                            4800L,
                            4801L,
                            "Commit",
                            "Progress"),
                    kinds);
        }
    }

    @Test
    void eventsDropRepeatsByIdentity() throws IOException {
        Script again = connection -> connection.send(all(opened(32, 0), relation(), transaction(48, 3)));
        try (ScriptedHub hub = new ScriptedHub(FIRST, again);
                Client client = Client.of(hub.address())) {
            List<Change.Identity> identities = new ArrayList<>();
            for (Event event : subscription(client).subscribe().events()) {
                assertFalse(event instanceof Event.Discard);
                if (event instanceof Change change) {
                    identities.add(change.identity());
                }
            }
            assertEquals(6, identities.size());
            assertEquals(6, new LinkedHashSet<>(identities).size());
        }
    }

    @Test
    void aDiscardedTransactionNeverComes() throws IOException {
        Script script = connection -> {
            connection.send(opened(0, 0), relation(), begin(16), insert(1, 1));
            EventOuterClass.Event discard = EventOuterClass.Event.newBuilder()
                    .setDiscard(EventOuterClass.Discard.newBuilder().setReason("made anew"))
                    .build();
            connection.send(all(discard, transaction(16, 1)));
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address())) {
            assertEquals(List.of(List.of(1600L)), ids(subscription(client).subscribe()));
        }
    }

    @Test
    void automaticAcknowledgementFollowsTheLoopBody() throws Exception {
        Script script = connection -> {
            connection.send(all(opened(0, 3), relation(), transaction(16, 1), transaction(32, 1)));
            connection.awaitEnd();
        };
        try (ScriptedHub hub = new ScriptedHub(script, script);
                Client client = Client.of(hub.address())) {
            Subscription left = client.subscription().subscriber("s").subscribe();
            left.next();
            left.close(); // makes durable what was acknowledged
            hub.connections.get(0).awaitEnd();
            assertEquals(List.of(), hub.connections.get(0).acks, "the first was still in the user's hands");
            assertEquals(List.of(), hub.unaryAcks);
            Subscription stream = client.subscription().subscriber("s").subscribe();
            stream.next();
            assertTrue(stream.hasNext());
            hub.connections.get(1).awaitAck(16);
            assertThrows(
                    HubException.AckAhead.class,
                    () -> stream.ack(new Position("0/20", LINEAGE)),
                    "what was looked for is not yet handed out");
            stream.next();
            stream.close();
            assertFalse(hub.connections.get(1).acks.contains("0/20"));
            assertEquals("0/10", hub.unaryAcks.get(0).getPosition().getLsn());
            assertEquals(3, hub.unaryAcks.get(0).getSession());
            hub.connections.get(1).awaitEnd();
        }
    }

    @Test
    void acknowledgementsAreGathered() throws Exception {
        Script script = connection -> {
            connection.send(opened(0, 1), relation());
            for (int number = 1; number <= 500; number++) {
                connection.send(transaction(number * 16, 1));
            }
            connection.send(progress(501 * 16));
            connection.awaitAck(501 * 16);
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address())) {
            assertEquals(
                    500,
                    subscription(client).subscriber("s").subscribe().stream().count());
            List<String> acks = hub.connections.get(0).acks;
            assertTrue(acks.size() < 100, acks.size() + " acknowledgements");
            assertEquals(
                    acks.stream().map(Position::lsnToLong).sorted().distinct().toList(),
                    acks.stream().map(Position::lsnToLong).toList());
        }
    }

    @Test
    void explicitAcknowledgementsHoldProgressBack() throws Exception {
        Script script = connection -> {
            connection.send(opened(0, 1), relation(), progress(8));
            connection.awaitAck(8);
            connection.send(all(transaction(16, 1), progress(32), transaction(48, 1)));
            connection.awaitAck(16);
            connection.awaitEnd();
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address());
                Subscription stream =
                        client.subscription().subscriber("s").autoAck(false).subscribe()) {
            Transaction first = stream.next();
            Transaction second = stream.next();
            first.ack();
            hub.connections.get(0).awaitAck(16);
            // Acknowledgements only go forward: one of 0/20 would have kept this one back.
            assertEquals(
                    List.of("0/8", "0/10"), hub.connections.get(0).acks, "an open transaction holds progress back");
            assertThrows(HubException.AckAhead.class, () -> stream.ack(new Position("0/50", LINEAGE)));
            second.ack();
            assertEquals(second.position(), stream.flush());
        }
    }

    @Test
    void creditIsGrantedAsTheUserReads() throws Exception {
        Script script = connection -> {
            connection.send(opened(0, 0), relation());
            connection.await(() -> connection.events == 10);
            connection.send(transaction(16, 5));
            connection.await(() -> connection.events == 15);
            List<EventOuterClass.Event> large = new ArrayList<>(List.of(begin(32)));
            for (int ordinal = 1; ordinal <= 10; ordinal++) {
                large.add(insert(ordinal, ordinal));
            }
            connection.send(large.toArray(EventOuterClass.Event[]::new));
            connection.await(() -> connection.events == 25);
            connection.send(commit(32, 10));
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address())) {
            Subscription stream = subscription(client).window(10, 1 << 20).subscribe();
            assertEquals(5, stream.next().changes().size());
            assertEquals(10, stream.next().changes().size(), "a transaction larger than the window comes whole");
            assertFalse(stream.hasNext());
        }
    }

    @Test
    void theCheckpointGoesBeforeTheGivenStart() throws Exception {
        Script none = connection -> {
            assertFalse(connection.open.hasStart());
            throw refusal(Status.Code.NOT_FOUND, "CHECKPOINT_MISSING", null);
        };
        Script fresh = connection -> {
            assertTrue(connection.open.getStart().hasLatest());
            connection.send(opened(16, 1));
            connection.awaitAck(16);
            connection.send(all(relation(), transaction(32, 1)));
        };
        try (ScriptedHub hub = new ScriptedHub(none, fresh, none);
                Client client = Client.of(hub.address())) {
            Subscription stream =
                    subscription(client).subscriber("s").start(Start.latest()).subscribe();
            assertEquals(List.of(List.of(3200L)), ids(stream));
            Subscription unknown = client.subscription().subscriber("s").subscribe();
            assertThrows(HubException.CheckpointMissing.class, unknown::next);
        }
    }

    @Test
    void eachReasonHasItsClass() throws IOException {
        for (String reason : HubException.BY_REASON.keySet()) {
            try (ScriptedHub hub = new ScriptedHub(
                            refusing(Status.Code.FAILED_PRECONDITION, reason, null, "earliest", "0/5"));
                    Client client = Client.of(hub.address())) {
                Subscription stream = client.subscription().subscribe();
                HubException error = assertThrows(HubException.class, stream::next);
                assertEquals(reason, error.reason());
                assertEquals(
                        reason.replace("_", ""),
                        error.getClass().getSimpleName().toUpperCase());
                assertEquals("0/5", error.metadata().get("earliest"));
                assertEquals(1, hub.connections.size(), "without RetryInfo it is not tried again");
                assertThrows(WalcastException.Closed.class, stream::next);
            }
        }
    }

    @Test
    void everyDocumentedReasonHasAClass() throws IOException {
        Path readme = Path.of("../../README.md");
        Assumptions.assumeTrue(Files.exists(readme), "not in the repository");
        Set<String> documented = Pattern.compile("(?m)^\\| `([A-Z]+_?[A-Z_]+)`")
                .matcher(Files.readString(readme))
                .results()
                .map(match -> match.group(1))
                .filter(name -> name.contains("_"))
                .collect(Collectors.toSet());
        assertTrue(documented.size() > 15, documented.toString());
        documented.removeAll(HubException.BY_REASON.keySet());
        assertEquals(Set.of(), documented);
    }

    @Test
    void retryInfoIsObeyed() throws IOException {
        Script fine = connection -> connection.send(all(opened(0, 0), relation(), transaction(16, 1)));
        AtomicInteger tokens = new AtomicInteger();
        try (ScriptedHub hub = new ScriptedHub(refusing(Status.Code.UNAVAILABLE, "STARTING", 0.4), fine);
                Client client = Client.builder(hub.address())
                        .token(() -> "t" + tokens.incrementAndGet())
                        .build()) {
            long started = System.nanoTime();
            assertEquals(1, ids(subscription(client).subscribe()).size());
            assertTrue(System.nanoTime() - started >= TimeUnit.MILLISECONDS.toNanos(400));
            assertEquals(
                    List.of("Bearer t1", "Bearer t2"),
                    hub.connections.stream()
                            .map(connection -> connection.authorization)
                            .toList());
        }
    }

    @Test
    void aTwinThatLostItsConnectionDoesNotTakeOverAgain() throws IOException {
        Script script = connection -> {
            connection.send(all(opened(0, 3), relation(), transaction(16, 1)));
            throw lost();
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address())) {
            hub.fencedBelow = 4;
            Subscription stream =
                    client.subscription().subscriber("s").retry(FAST).subscribe();
            stream.next();
            assertThrows(HubException.SubscriberFenced.class, stream::next);
            assertEquals(1, hub.connections.size());
        }
    }

    private static EventOuterClass.Event progressAt(String lsn) {
        EventOuterClass.Progress progress = progress(32).getProgress();
        return EventOuterClass.Event.newBuilder()
                .setProgress(progress.toBuilder()
                        .setPosition(progress.getPosition().toBuilder().setLsn(lsn)))
                .build();
    }

    @Test
    void whatTheClientDoesNotKnowIsAnError() throws IOException {
        EventOuterClass.Change.Builder change =
                EventOuterClass.Change.newBuilder().setRelationId(99).setOrdinal(1);
        EventOuterClass.Event stranger = EventOuterClass.Event.newBuilder()
                .setChange(change.setOperation(EventOuterClass.Operation.OPERATION_INSERT))
                .build();
        EventOuterClass.Event noOperation = EventOuterClass.Event.newBuilder()
                .setChange(change.setRelationId(7).setOperationValue(77))
                .build();
        EventOuterClass.Event narrow = EventOuterClass.Event.newBuilder()
                .setChange(change.setOperationValue(1).setAfterRow(EventOuterClass.Row.getDefaultInstance()))
                .build();
        EventOuterClass.Event novel = EventOuterClass.Event.newBuilder()
                .setChange(change.setAfterRow(EventOuterClass.Row.newBuilder()
                        .addValues(EventOuterClass.Value.getDefaultInstance())
                        .addValues(EventOuterClass.Value.getDefaultInstance())))
                .build();
        List<EventOuterClass.Event[]> wrong = List.of(
                new EventOuterClass.Event[] {EventOuterClass.Event.getDefaultInstance()},
                new EventOuterClass.Event[] {insert(1, 1)},
                new EventOuterClass.Event[] {commit(16, 1)},
                new EventOuterClass.Event[] {begin(16), begin(32)},
                new EventOuterClass.Event[] {begin(16), progress(32)},
                new EventOuterClass.Event[] {begin(16), stranger},
                new EventOuterClass.Event[] {begin(16), noOperation, commit(16, 1)},
                new EventOuterClass.Event[] {begin(16), narrow, commit(16, 1)},
                new EventOuterClass.Event[] {begin(16), novel, commit(16, 1)},
                new EventOuterClass.Event[] {progressAt("0/x")},
                new EventOuterClass.Event[] {progressAt("20")},
                new EventOuterClass.Event[] {progressAt("-0/1")},
                new EventOuterClass.Event[] {progressAt("")});
        for (EventOuterClass.Event[] events : wrong) {
            Script script = connection -> connection.send(all(opened(0, 0), relation(), events));
            try (ScriptedHub hub = new ScriptedHub(script);
                    Client client = Client.of(hub.address())) {
                Subscription stream = client.subscription().subscribe();
                assertThrows(
                        WalcastException.Protocol.class,
                        () -> stream.next().changes().forEach(Change::after),
                        List.of(events).toString());
            }
        }
    }

    private static EventOuterClass.Event fork(boolean more, long... retracted) {
        EventOuterClass.TimelineChanged.Builder changed = EventOuterClass.TimelineChanged.newBuilder()
                .setOldLineage(LINEAGE)
                .setNewLineage("bb")
                .setSwitchLsn("0/20")
                .setMore(more)
                .setPosition(position(32, "bb"));
        for (long number : retracted) {
            changed.addRetracted(EventOuterClass.Retracted.newBuilder()
                    .setBegin(begin(number).getBegin())
                    .setPosition(position(number))
                    .setChanges(1));
        }
        return EventOuterClass.Event.newBuilder().setTimelineChanged(changed).build();
    }

    @Test
    void aFailoverCannotBeMissed() throws IOException {
        Script script = connection -> {
            connection.send(all(opened(0, 1), relation(), transaction(16, 1), transaction(48, 1)));
            connection.send(fork(true, 48), fork(false, 64), progress(32));
            throw lost();
        };
        Script after = connection -> {
            connection.send(opened(32, 2, "bb"), fork(true, 48), fork(false, 64));
            connection.send(all(relation(), transaction(64, 1)));
        };
        try (ScriptedHub hub = new ScriptedHub(script, after);
                Client client = Client.of(hub.address())) {
            Subscription stream =
                    subscription(client).subscriber("s").start(Start.earliest()).subscribe();
            stream.next();
            stream.next();
            WalcastException.TimelineChanged told =
                    assertThrows(WalcastException.TimelineChanged.class, stream::hasNext);
            assertEquals(
                    List.of(48L, 64L),
                    told.event().retracted().stream()
                            .map(entry -> entry.transaction().xid())
                            .toList());
            assertEquals(new Position("0/20", "bb"), told.event().position());
            assertEquals(1, ids(stream).size(), "it goes on, and the same failover is not thrown again");
        }
        try (ScriptedHub hub = new ScriptedHub(script, after);
                Client client = Client.of(hub.address())) {
            List<Event.TimelineChanged> told = new ArrayList<>();
            assertEquals(
                    3,
                    ids(subscription(client)
                                    .subscriber("s")
                                    .onTimelineChanged(told::add)
                                    .subscribe())
                            .size());
            assertEquals(1, told.size());
        }
    }

    @Test
    void nothingIsLeftBehind() throws Exception {
        Script script = connection -> {
            connection.send(all(opened(0, 1), relation(), transaction(16, 1)));
            connection.awaitEnd();
        };
        try (ScriptedHub hub = new ScriptedHub(script)) {
            Client client = Client.of(hub.address());
            Subscription stream = client.subscription().subscriber("s").subscribe();
            stream.next();
            assertTrue(senders().iterator().hasNext(), "this test looks for the wrong threads");
            AtomicInteger more = new AtomicInteger(-1);
            Thread waiting = new Thread(() -> more.set(stream.hasNext() ? 1 : 0));
            waiting.start();
            hub.connections.get(0).awaitAck(16);
            client.close();
            waiting.join(10_000);
            assertEquals(0, more.get(), "closing from another thread ends the loop");
            hub.connections.get(0).awaitEnd();
            for (Thread sender : senders()) {
                sender.join(10_000);
                assertFalse(sender.isAlive());
            }
        }
    }

    private static List<Thread> senders() {
        return Thread.getAllStackTraces().keySet().stream()
                .filter(thread -> thread.getName().equals("walcast-sender"))
                .toList();
    }

    @Test
    void anInterruptedWaitLosesNothing() throws Exception {
        Script script = connection -> {
            connection.send(all(opened(0, 0), relation(), transaction(16, 1)));
            connection.await(() -> connection.events > 10);
            connection.send(transaction(32, 1));
        };
        try (ScriptedHub hub = new ScriptedHub(script);
                Client client = Client.of(hub.address())) {
            Subscription stream = subscription(client).window(10, 1 << 20).subscribe();
            stream.next();
            Thread.currentThread().interrupt();
            assertThrows(WalcastException.Interrupted.class, stream::hasNext);
            assertTrue(Thread.interrupted());
            synchronized (hub.connections.get(0)) {
                hub.connections.get(0).events = 11;
                hub.connections.get(0).notifyAll();
            }
            assertEquals(List.of(List.of(3200L)), ids(stream));
        }
    }

    @Test
    void backOffHasFullJitterAndStartsOver() {
        long second = TimeUnit.SECONDS.toNanos(1);
        Retry retry = new Retry(Duration.ofMillis(100), Duration.ofSeconds(1), Duration.ofSeconds(100));
        Backoff backoff = new Backoff(retry, 0, ceiling -> ceiling);
        Iterator<Integer> expected = List.of(100, 200, 400, 800, 1000).iterator();
        expected.forEachRemaining(delay -> assertEquals(Duration.ofMillis(delay), backoff.delay(null, second)));
        assertEquals(Duration.ofSeconds(6), backoff.delay(Duration.ofSeconds(5), second));
        backoff.succeeded(2 * second);
        assertEquals(Duration.ofMillis(100), backoff.delay(null, 3 * second));
        assertEquals(null, backoff.delay(null, 102 * second));
    }
}

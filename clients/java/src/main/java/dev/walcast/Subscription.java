package dev.walcast;

import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.Iterator;
import java.util.NoSuchElementException;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;
import walcast.v1.ChangeStreamServiceGrpc;
import walcast.v1.Walcast.AcknowledgeRequest;
import walcast.v1.Walcast.AcknowledgeResponse;

/**
 * Transactions in commit order, across reconnects. Connects when it is first iterated.
 *
 * <p>Iterating belongs to one thread; acknowledging and closing may come from any. {@link #hasNext} asks for the next
 * transaction, so it waits, and under automatic acknowledgement it is what acknowledges the one before.
 */
public final class Subscription implements Iterator<Transaction>, Iterable<Transaction>, AutoCloseable {
    private final Target target;
    private final Core core;
    private final Consumer<Subscription> onClosed;
    private final CountDownLatch closed = new CountDownLatch(1);
    private final Object lock = new Object();
    private StreamCall stream;
    private boolean finished;
    private boolean used;
    private Transaction next;
    private RuntimeException failure;

    Subscription(Target target, Options options, Consumer<Subscription> onClosed) {
        this.target = target;
        this.core = new Core(options, System::nanoTime);
        this.onClosed = onClosed;
    }

    // -- iterating

    /** This subscription: it can be iterated once, though with interruptions. */
    @Override
    public Iterator<Transaction> iterator() {
        return this;
    }

    /**
     * Asks for the next transaction and waits for it. Whether there is one: there is until the subscription is closed, or
     * the tail is reached under {@code stopAtTail}.
     *
     * @throws WalcastException why it cannot go on; {@link WalcastException.TimelineChanged} and {@link
     *     WalcastException.Gap} ask to be handled, after which it can be iterated again
     */
    @Override
    public boolean hasNext() {
        used = true;
        while (next == null) {
            Object item = advance();
            if (item == null) {
                return false;
            }
            if (item instanceof Transaction transaction) {
                next = transaction;
            } else {
                core.hand(item);
                core.hook(item);
            }
        }
        return true;
    }

    @Override
    public Transaction next() {
        if (!hasNext()) {
            throw new NoSuchElementException("the subscription has ended");
        }
        Transaction transaction = next;
        next = null;
        core.hand(transaction);
        return transaction;
    }

    /**
     * The same as a sequential stream.
     *
     * @return of transactions
     */
    public Stream<Transaction> stream() {
        int traits = Spliterator.ORDERED | Spliterator.NONNULL | Spliterator.DISTINCT;
        return StreamSupport.stream(Spliterators.spliteratorUnknownSize(this, traits), false);
    }

    /**
     * Single changes of complete transactions. Under automatic acknowledgement a transaction is done when the next one's
     * first change is asked for.
     *
     * @return to be iterated once
     */
    public Iterable<Change> changes() {
        return () ->
                stream().flatMap(transaction -> transaction.changes().stream()).iterator();
    }

    /**
     * Everything as it comes, without waiting for a transaction's end: for transactions that do not fit into memory. What
     * came since a Begin counts only when its Commit has come; a Discard takes it back.
     *
     * @return to be iterated once
     * @throws WalcastException.Misuse if transactions were iterated before
     */
    public Iterable<Event> events() {
        if (used) {
            throw new WalcastException.Misuse("events() must be the first use of a subscription");
        }
        core.assembler.streaming = true;
        return () -> new Iterator<>() {
            private Event ahead;

            @Override
            public boolean hasNext() {
                if (ahead == null) {
                    ahead = (Event) advance();
                }
                return ahead != null;
            }

            @Override
            public Event next() {
                if (!hasNext()) {
                    throw new NoSuchElementException("the subscription has ended");
                }
                Event event = ahead;
                ahead = null;
                core.hand(event);
                return event;
            }
        };
    }

    /** The next item; null at the end. */
    private Object advance() {
        if (failure != null) {
            throw new WalcastException.Closed("the subscription was ended by " + failure);
        }
        core.nextRequested();
        while (true) {
            if (isClosed()) {
                return null;
            }
            Object item = core.poll();
            if (item != null) {
                return item;
            }
            if (finished) {
                return null;
            }
            try {
                receive();
            } catch (InterruptedException interrupted) {
                Thread.currentThread().interrupt();
                throw new WalcastException.Interrupted();
            } catch (RuntimeException error) {
                failure = error;
                close();
                throw error;
            }
        }
    }

    private boolean isClosed() {
        return closed.getCount() == 0;
    }

    private void receive() throws InterruptedException {
        HubException error;
        try {
            StreamCall.Item item = connected().receive();
            if (item instanceof StreamCall.Received received) {
                core.receive(received.bytes());
                return;
            }
            StreamCall.Ended ended = (StreamCall.Ended) item;
            error = ended.status().isOk() ? core.ended() : HubException.of(ended.status(), ended.trailers());
        } catch (StatusRuntimeException refused) {
            error = HubException.of(refused.getStatus(), refused.getTrailers());
        }
        disconnect();
        if (isClosed()) {
            return;
        }
        if (error == null) {
            finished = true;
            return;
        }
        Duration delay = core.failed(error);
        if (core.options.onReconnect != null) {
            core.options.onReconnect.accept(error, delay);
        }
        closed.await(delay.toNanos(), TimeUnit.NANOSECONDS);
    }

    private StreamCall connected() {
        synchronized (lock) {
            if (stream != null) {
                return stream;
            }
        }
        AcknowledgeRequest proof = core.proof();
        if (proof != null) {
            ManagedChannel channel = target.connect();
            try {
                acknowledge(channel, proof, Client.DEADLINE);
            } finally {
                channel.shutdownNow();
            }
            core.proved();
        }
        synchronized (lock) {
            stream = new StreamCall(target, core);
            if (isClosed()) {
                stream.close();
            }
            return stream;
        }
    }

    // -- acknowledging

    /**
     * Everything that was handed out is done. Returns at once; acknowledgements are gathered and sent a few times per
     * second.
     *
     * @throws WalcastException.Misuse if the subscription is anonymous, or nothing was received yet
     */
    public void ack() {
        Position position = core.position();
        if (position == null) {
            throw new WalcastException.Misuse("nothing was received yet");
        }
        ack(position);
    }

    /**
     * Everything up to and including a position is done. Returns at once.
     *
     * @param position that was handed out
     * @throws HubException.AckAhead if it has not been handed out
     * @throws WalcastException.Misuse if the subscription is anonymous
     */
    public void ack(Position position) {
        core.acknowledge(position, 0);
    }

    /**
     * Waits until what was acknowledged is durable, at most 30 s.
     *
     * @return the checkpoint; null if nothing was acknowledged
     * @throws HubException if the hub refuses or does not answer
     */
    public Position flush() {
        return flush(Client.DEADLINE);
    }

    /**
     * Waits until what was acknowledged is durable.
     *
     * @param deadline for the call
     * @return the checkpoint; null if nothing was acknowledged
     * @throws HubException if the hub refuses or does not answer
     */
    public Position flush(Duration deadline) {
        Position position = core.ackedPosition();
        if (position == null || core.opened() == null) {
            return null;
        }
        ManagedChannel channel;
        synchronized (lock) {
            channel = stream == null ? null : stream.channel;
        }
        ManagedChannel own = channel == null ? target.connect() : null;
        try {
            AcknowledgeResponse response =
                    acknowledge(channel == null ? own : channel, core.acknowledgement(position), deadline);
            return Position.of(response.getCheckpoint());
        } catch (StatusRuntimeException refused) {
            throw HubException.of(refused.getStatus(), refused.getTrailers());
        } finally {
            if (own != null) {
                own.shutdownNow();
            }
        }
    }

    private AcknowledgeResponse acknowledge(ManagedChannel channel, AcknowledgeRequest request, Duration deadline) {
        return ChangeStreamServiceGrpc.newBlockingStub(channel)
                .withInterceptors(MetadataUtils.newAttachHeadersInterceptor(target.metadata()))
                .withDeadlineAfter(deadline.toNanos(), TimeUnit.NANOSECONDS)
                .acknowledge(request);
    }

    // -- state

    /**
     * Everything up to here was handed out: what an anonymous subscriber resumes after.
     *
     * @return null before the stream is open
     */
    public Position position() {
        return core.position();
    }

    /**
     * How the present stream was opened.
     *
     * @return null before that
     */
    public Event.Opened opened() {
        return core.opened();
    }

    /**
     * The newest progress that was reached, with lag, checkpoint and expiry.
     *
     * @return null before the first
     */
    public Event.Progress progress() {
        return core.progress();
    }

    // -- closing

    private void disconnect() {
        StreamCall ending;
        synchronized (lock) {
            ending = stream;
            stream = null;
        }
        if (ending != null) {
            ending.close();
        }
    }

    /**
     * Makes durable what was acknowledged, as far as the hub answers within 5 s, and closes the connection. A loop in another
     * thread ends.
     */
    @Override
    public void close() {
        synchronized (closed) {
            if (isClosed()) {
                return;
            }
            if (core.isUnflushed()) {
                try {
                    flush(Duration.ofSeconds(5));
                } catch (HubException error) {
                    Core.LOG.log(
                            System.Logger.Level.WARNING,
                            "the last acknowledgement was not confirmed: {0}",
                            error.getMessage());
                }
            }
            closed.countDown();
        }
        disconnect();
        onClosed.accept(this);
    }
}

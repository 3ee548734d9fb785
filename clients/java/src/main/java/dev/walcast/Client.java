package dev.walcast;

import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.AbstractStub;
import io.grpc.stub.MetadataUtils;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.function.Function;
import java.util.function.Supplier;
import walcast.v1.AdminServiceGrpc;
import walcast.v1.ChangeStreamServiceGrpc;
import walcast.v1.Walcast;

/**
 * A walcast hub. Cheap to make: connections are opened by calls, one for each subscription. May be used by any thread.
 */
public final class Client implements AutoCloseable {
    /** Of unary calls. Streams have none. */
    static final Duration DEADLINE = Duration.ofSeconds(30);

    private final Target target;
    private final Set<Subscription> subscriptions = ConcurrentHashMap.newKeySet();
    private ManagedChannel channel;
    private boolean closed;

    private Client(Target target) {
        this.target = target;
    }

    /** How to reach a hub. */
    public static final class Builder {
        private final String address;
        private Tls tls;
        private Supplier<String> token;
        private int maxMessageBytes = 64 << 20;

        private Builder(String address) {
            this.address = address;
        }

        /**
         * Connects with TLS.
         *
         * @param settings authorities and certificates
         * @return this
         */
        public Builder tls(Tls settings) {
            tls = settings;
            return this;
        }

        /**
         * A bearer token.
         *
         * @param text of the token
         * @return this
         */
        public Builder token(String text) {
            return token(() -> text);
        }

        /**
         * A bearer token that is asked for at each connection and call.
         *
         * @param supplier of the token
         * @return this
         */
        public Builder token(Supplier<String> supplier) {
            token = supplier;
            return this;
        }

        /**
         * The largest response message that is accepted.
         *
         * @param bytes default 64 MiB
         * @return this
         */
        public Builder maxMessageBytes(int bytes) {
            maxMessageBytes = bytes;
            return this;
        }

        /**
         * Makes the client. Does not connect yet.
         *
         * @return to be closed
         */
        public Client build() {
            return new Client(Target.parse(address, tls, token, maxMessageBytes));
        }
    }

    /**
     * A client for a hub.
     *
     * @param address {@code host:port}, or {@code https://host:port} for TLS
     * @return to be closed
     */
    public static Client of(String address) {
        return builder(address).build();
    }

    /**
     * A client with TLS or a token.
     *
     * @param address {@code host:port}, or {@code https://host:port} for TLS
     * @return what else to say
     */
    public static Builder builder(String address) {
        return new Builder(address);
    }

    /**
     * Begins a subscription.
     *
     * @return what to subscribe to
     */
    public SubscriptionBuilder subscription() {
        return new SubscriptionBuilder(this, target.maxMessageBytes());
    }

    synchronized Subscription subscribe(Options options) {
        open();
        Subscription subscription = new Subscription(target, options, subscriptions::remove);
        subscriptions.add(subscription);
        return subscription;
    }

    synchronized RetractedTransactions readRetracted(String lineage, Options options) {
        open();
        return new RetractedTransactions(target, lineage, options);
    }

    private void open() {
        if (closed) {
            throw new WalcastException.Closed("the client is closed");
        }
    }

    // -- unary calls

    private synchronized ManagedChannel channel() {
        open();
        if (channel == null) {
            channel = target.connect();
        }
        return channel;
    }

    private <S extends AbstractStub<S>> S ready(S stub) {
        return stub.withInterceptors(MetadataUtils.newAttachHeadersInterceptor(target.metadata()))
                .withDeadlineAfter(DEADLINE.toNanos(), TimeUnit.NANOSECONDS);
    }

    private <T> T changes(Function<ChangeStreamServiceGrpc.ChangeStreamServiceBlockingStub, T> call) {
        try {
            return call.apply(ready(ChangeStreamServiceGrpc.newBlockingStub(channel())));
        } catch (StatusRuntimeException refused) {
            throw HubException.of(refused.getStatus(), refused.getTrailers());
        }
    }

    private <T> T admin(Function<AdminServiceGrpc.AdminServiceBlockingStub, T> call) {
        try {
            return call.apply(ready(AdminServiceGrpc.newBlockingStub(channel())));
        } catch (StatusRuntimeException refused) {
            throw HubException.of(refused.getStatus(), refused.getTrailers());
        }
    }

    /**
     * The state of the source, the journal and the streams.
     *
     * @return as the protocol has it
     * @throws HubException if the hub refuses or does not answer
     */
    public Walcast.GetStatusResponse status() {
        return admin(stub -> stub.getStatus(Walcast.GetStatusRequest.getDefaultInstance()));
    }

    /**
     * Every named subscriber with its checkpoint and lag.
     *
     * @return as the protocol has it
     * @throws HubException if the hub refuses or does not answer
     */
    public List<Walcast.Subscriber> subscribers() {
        return admin(stub -> stub.listSubscribers(Walcast.ListSubscribersRequest.getDefaultInstance()))
                .getSubscribersList();
    }

    /**
     * Moves a checkpoint anywhere, and ends an open stream of the subscriber.
     *
     * @param subscriber its name
     * @param start where; not a snapshot
     * @return where it stands now
     * @throws HubException if the hub refuses or does not answer
     */
    public Position resetSubscriber(String subscriber, Start start) {
        Walcast.ResetSubscriberRequest request = Walcast.ResetSubscriberRequest.newBuilder()
                .setSubscriber(subscriber)
                .setStart(Messages.start(start))
                .build();
        return Position.of(admin(stub -> stub.resetSubscriber(request)).getCheckpoint());
    }

    /**
     * Forgets a subscriber, and ends its open stream.
     *
     * @param subscriber its name
     * @throws HubException if the hub refuses or does not answer
     */
    public void deleteSubscriber(String subscriber) {
        Walcast.DeleteSubscriberRequest request = Walcast.DeleteSubscriberRequest.newBuilder()
                .setSubscriber(subscriber)
                .build();
        admin(stub -> stub.deleteSubscriber(request));
    }

    /**
     * The relations that the hub knows.
     *
     * @param allVersions whether every version rather than the newest of each table
     * @param tables globs over {@code schema.table}; none is all
     * @return oldest version first
     * @throws HubException if the hub refuses or does not answer
     */
    public List<Relation> relations(boolean allVersions, String... tables) {
        Walcast.ListRelationsRequest request = Walcast.ListRelationsRequest.newBuilder()
                .addAllTables(List.of(tables))
                .setAllVersions(allVersions)
                .build();
        return changes(stub -> stub.listRelations(request)).getRelationsList().stream()
                .map(relation -> new Relation(relation, Map.of()))
                .toList();
    }

    /**
     * Starts a snapshot of tables into the open stream of a subscriber, in incremental mode.
     *
     * @param subscriber its name
     * @param rows to read
     * @return the snapshot's identifier
     * @throws HubException if the hub refuses or does not answer
     */
    public String startBackfill(String subscriber, Backfill rows) {
        return changes(stub -> stub.backfill(rows.request(subscriber))).getSnapshotId();
    }

    /** What to do with a backfill that was started. */
    public enum BackfillAction {
        /** Stop reading for now. */
        PAUSE(Walcast.BackfillAction.BACKFILL_ACTION_PAUSE),
        /** Go on where it was paused. */
        RESUME(Walcast.BackfillAction.BACKFILL_ACTION_RESUME),
        /** Give it up. */
        CANCEL(Walcast.BackfillAction.BACKFILL_ACTION_CANCEL);

        private final Walcast.BackfillAction message;

        BackfillAction(Walcast.BackfillAction message) {
            this.message = message;
        }
    }

    /**
     * Pauses, resumes or cancels a backfill.
     *
     * @param subscriber its name
     * @param snapshotId that {@link #startBackfill} gave
     * @param action what to do
     * @throws HubException if the hub refuses or does not answer
     */
    public void backfill(String subscriber, String snapshotId, BackfillAction action) {
        Walcast.BackfillRequest request = Walcast.BackfillRequest.newBuilder()
                .setSubscriber(subscriber)
                .setSnapshotId(snapshotId)
                .setAction(action.message)
                .build();
        changes(stub -> stub.backfill(request));
    }

    /** Closes every subscription and connection. */
    @Override
    public void close() {
        ManagedChannel unary;
        synchronized (this) {
            closed = true;
            unary = channel;
            channel = null;
        }
        subscriptions.forEach(Subscription::close);
        if (unary != null) {
            unary.shutdownNow();
        }
    }
}

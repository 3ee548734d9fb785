package dev.walcast;

import com.google.protobuf.Any;
import com.google.protobuf.Message;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Context;
import io.grpc.Contexts;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.ServerCall;
import io.grpc.ServerCallHandler;
import io.grpc.ServerInterceptor;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.netty.shaded.io.grpc.netty.NettyServerBuilder;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.TimeUnit;
import java.util.function.BooleanSupplier;
import walcast.v1.ChangeStreamServiceGrpc;
import walcast.v1.EventOuterClass;
import walcast.v1.EventOuterClass.Event;
import walcast.v1.EventOuterClass.Value;
import walcast.v1.Walcast;
import walcast.v1.Walcast.ConsumeRequest;
import walcast.v1.Walcast.ConsumeResponse;

/** A grpc server that plays one script per connection, in order. */
final class ScriptedHub extends ChangeStreamServiceGrpc.ChangeStreamServiceImplBase implements AutoCloseable {
    static final String LINEAGE = "00000000000000aa";
    private static final Context.Key<String> AUTHORIZATION = Context.key("authorization");

    /** What a connection does. Returning ends the stream with OK. */
    interface Script {
        void play(Connection connection) throws InterruptedException;
    }

    final List<Connection> connections = new CopyOnWriteArrayList<>();
    final List<Walcast.AcknowledgeRequest> unaryAcks = new CopyOnWriteArrayList<>();
    volatile long fencedBelow;
    private final Script[] scripts;
    private final Server server;

    ScriptedHub(Script... scripts) throws IOException {
        this.scripts = scripts;
        this.server = NettyServerBuilder.forPort(0)
                .addService(this)
                .intercept(new ServerInterceptor() {
                    @Override
                    public <Q, R> ServerCall.Listener<Q> interceptCall(
                            ServerCall<Q, R> call, Metadata headers, ServerCallHandler<Q, R> next) {
                        String token = headers.get(Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER));
                        Context context = Context.current().withValue(AUTHORIZATION, token);
                        return Contexts.interceptCall(context, call, headers, next);
                    }
                })
                .build()
                .start();
    }

    String address() {
        return "127.0.0.1:" + server.getPort();
    }

    /** What one stream asked for, as it comes. */
    static final class Connection implements StreamObserver<ConsumeRequest> {
        final String authorization = AUTHORIZATION.get();
        final List<String> acks = new CopyOnWriteArrayList<>();
        private final StreamObserver<ConsumeResponse> responses;
        private final Script script;
        Walcast.SubscribeRequest open;
        long events;
        boolean ended;

        private Connection(Script script, StreamObserver<ConsumeResponse> responses) {
            this.script = script;
            this.responses = responses;
        }

        @Override
        public synchronized void onNext(ConsumeRequest request) {
            if (request.hasOpen()) {
                open = request.getOpen();
                Thread thread = new Thread(this::play, "script");
                thread.setDaemon(true);
                thread.start();
            } else if (request.hasCredit()) {
                events += request.getCredit().getEvents();
            } else {
                acks.add(request.getAcknowledge().getLsn());
            }
            notifyAll();
        }

        @Override
        public synchronized void onError(Throwable error) {
            ended = true;
            notifyAll();
        }

        @Override
        public synchronized void onCompleted() {
            ended = true;
            notifyAll();
        }

        private void play() {
            try {
                script.play(this);
                responses.onCompleted();
            } catch (StatusRuntimeException refusal) {
                responses.onError(refusal);
            } catch (InterruptedException | RuntimeException | AssertionError failed) {
                responses.onError(
                        Status.DATA_LOSS.withDescription("script: " + failed).asRuntimeException());
            }
        }

        void send(Event... events) {
            responses.onNext(ConsumeResponse.newBuilder()
                    .addAllEvents(Arrays.asList(events))
                    .build());
        }

        synchronized void await(BooleanSupplier what) throws InterruptedException {
            long deadline = System.nanoTime() + TimeUnit.SECONDS.toNanos(30);
            while (!what.getAsBoolean()) {
                long left = TimeUnit.NANOSECONDS.toMillis(deadline - System.nanoTime());
                if (left <= 0) {
                    throw new AssertionError("the client did not do it");
                }
                wait(left);
            }
        }

        void awaitAck(long number) throws InterruptedException {
            await(() -> acks.contains(lsn(number)));
        }

        void awaitEnd() throws InterruptedException {
            await(() -> ended);
        }
    }

    @Override
    public StreamObserver<ConsumeRequest> consume(StreamObserver<ConsumeResponse> responses) {
        Connection connection = new Connection(scripts[Math.min(connections.size(), scripts.length - 1)], responses);
        connections.add(connection);
        return connection;
    }

    @Override
    public void acknowledge(Walcast.AcknowledgeRequest request, StreamObserver<Walcast.AcknowledgeResponse> response) {
        unaryAcks.add(request);
        if (request.getSession() < fencedBelow) {
            response.onError(refusal(Status.Code.ABORTED, "SUBSCRIBER_FENCED", null));
            return;
        }
        response.onNext(Walcast.AcknowledgeResponse.newBuilder()
                .setCheckpoint(request.getPosition())
                .build());
        response.onCompleted();
    }

    @Override
    public void close() {
        server.shutdownNow();
    }

    // -- events

    static String lsn(long number) {
        return "0/" + Long.toHexString(number).toUpperCase();
    }

    static EventOuterClass.Position position(long number, String lineage) {
        return EventOuterClass.Position.newBuilder()
                .setLsn(lsn(number))
                .setLineage(lineage)
                .build();
    }

    static EventOuterClass.Position position(long number) {
        return position(number, LINEAGE);
    }

    static Event opened(long after, long session, String lineage) {
        return Event.newBuilder()
                .setOpened(EventOuterClass.Opened.newBuilder()
                        .setAfter(position(after, lineage))
                        .setEarliest(position(0))
                        .setTail(position(0xFFFF))
                        .setSession(session))
                .build();
    }

    static Event opened(long after, long session) {
        return opened(after, session, LINEAGE);
    }

    static Event relation() {
        return Event.newBuilder()
                .setRelation(EventOuterClass.Relation.newBuilder()
                        .setRelationId(7)
                        .setSchema("public")
                        .setTable("t")
                        .setReplicaIdentityValue(1)
                        .addColumns(EventOuterClass.Column.newBuilder()
                                .setName("id")
                                .setTypeName("int4")
                                .setInIdentity(true))
                        .addColumns(
                                EventOuterClass.Column.newBuilder().setName("v").setTypeName("text")))
                .build();
    }

    static Event insert(long ordinal, long number) {
        return Event.newBuilder()
                .setChange(EventOuterClass.Change.newBuilder()
                        .setOperation(EventOuterClass.Operation.OPERATION_INSERT)
                        .setRelationId(7)
                        .setOrdinal(ordinal)
                        .setAfterRow(EventOuterClass.Row.newBuilder()
                                .addValues(Value.newBuilder().setIntValue(number))
                                .addValues(Value.newBuilder().setText("v" + number))))
                .build();
    }

    static Event begin(long number) {
        return Event.newBuilder()
                .setBegin(EventOuterClass.Begin.newBuilder()
                        .setCommitLsn(lsn(number - 1))
                        .setLineage(LINEAGE)
                        .setXid(number))
                .build();
    }

    static Event commit(long number, int changes) {
        return Event.newBuilder()
                .setCommit(EventOuterClass.Commit.newBuilder()
                        .setPosition(position(number))
                        .setChanges(changes)
                        .setTotalChanges(changes))
                .build();
    }

    static Event progress(long number) {
        return Event.newBuilder()
                .setProgress(EventOuterClass.Progress.newBuilder()
                        .setPosition(position(number))
                        .setTail(position(0xFFFF))
                        .setSourceConnected(true))
                .build();
    }

    static Event[] transaction(long number, int changes) {
        List<Event> events = new ArrayList<>();
        events.add(begin(number));
        for (int ordinal = 1; ordinal <= changes; ordinal++) {
            events.add(insert(ordinal, number * 100 + ordinal - 1));
        }
        events.add(commit(number, changes));
        return events.toArray(Event[]::new);
    }

    static Event[] all(Object... parts) {
        List<Event> events = new ArrayList<>();
        for (Object part : parts) {
            events.addAll(part instanceof Event event ? List.of(event) : Arrays.asList((Event[]) part));
        }
        return events.toArray(Event[]::new);
    }

    /** An error of the hub; without a reason, of the connection. */
    static StatusRuntimeException refusal(Status.Code code, String reason, Double retry, String... metadata) {
        com.google.rpc.Status.Builder status =
                com.google.rpc.Status.newBuilder().setCode(code.value()).setMessage("because of " + reason);
        if (!reason.isEmpty()) {
            ErrorInfo.Builder info = ErrorInfo.newBuilder().setReason(reason).setDomain("walcast");
            for (int at = 0; at < metadata.length; at += 2) {
                info.putMetadata(metadata[at], metadata[at + 1]);
            }
            add(status, info.build());
        }
        if (retry != null) {
            add(
                    status,
                    RetryInfo.newBuilder()
                            .setRetryDelay(
                                    com.google.protobuf.Duration.newBuilder().setNanos((int) (retry * 1e9)))
                            .build());
        }
        return StatusProto.toStatusRuntimeException(status.build());
    }

    private static void add(com.google.rpc.Status.Builder status, Message detail) {
        status.addDetails(Any.pack(detail));
    }

    static StatusRuntimeException lost() {
        return refusal(Status.Code.UNAVAILABLE, "", null);
    }
}

package dev.walcast;

import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.MethodDescriptor.Marshaller;
import io.grpc.Status;
import io.grpc.protobuf.ProtoUtils;
import java.io.IOException;
import java.io.InputStream;
import java.io.UncheckedIOException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import walcast.v1.ChangeStreamServiceGrpc;
import walcast.v1.Walcast.ConsumeRequest;

/**
 * One connection with one Consume call. One response is read ahead of the one that the user works on, so that the two overlap;
 * a thread of its own sends.
 */
final class StreamCall {
    private static final int AHEAD = 2;
    private static final MethodDescriptor<ConsumeRequest, Received> CONSUME =
            ChangeStreamServiceGrpc.getConsumeMethod().toBuilder(
                            ProtoUtils.marshaller(ConsumeRequest.getDefaultInstance()), new ResponseMarshaller())
                    .build();

    /** What a stream hands over: a response, or why there is none. */
    sealed interface Item permits Received, Ended {}

    record Received(byte[] bytes) implements Item {}

    record Ended(Status status, Metadata trailers) implements Item {}

    /** Leaves responses as bytes: {@link Assembler} reads them, in the iterating thread. */
    static final class ResponseMarshaller implements Marshaller<Received> {
        @Override
        public InputStream stream(Received value) {
            throw new UnsupportedOperationException("responses are not sent");
        }

        @Override
        public Received parse(InputStream stream) {
            try {
                return new Received(stream.readAllBytes());
            } catch (IOException error) {
                throw new UncheckedIOException(error);
            }
        }
    }

    final ManagedChannel channel;
    private final ClientCall<ConsumeRequest, Received> call;
    private final BlockingQueue<Item> inbox = new LinkedBlockingQueue<>();
    private final Thread sender;

    StreamCall(Target target, Core core) {
        ConsumeRequest open = core.open();
        Metadata metadata = target.metadata();
        channel = target.connect();
        call = channel.newCall(CONSUME, CallOptions.DEFAULT);
        long number = core.outbox.stream();
        sender = new Thread(() -> send(open, core.outbox, number), "walcast-sender");
        sender.setDaemon(true);
        call.start(new Listener(), metadata);
        call.request(AHEAD);
        sender.start();
    }

    private final class Listener extends ClientCall.Listener<Received> {
        @Override
        public void onMessage(Received message) {
            inbox.add(message);
        }

        @Override
        public void onClose(Status status, Metadata trailers) {
            inbox.add(new Ended(status, trailers));
            sender.interrupt();
        }
    }

    private void send(ConsumeRequest open, Outbox outbox, long number) {
        try {
            for (ConsumeRequest request = open; request != null; request = outbox.await(number)) {
                call.sendMessage(request);
            }
        } catch (InterruptedException | IllegalStateException ended) {
            Thread.currentThread().interrupt();
        }
    }

    /** Waits for the next response, or the end. */
    Item receive() throws InterruptedException {
        Item item = inbox.take();
        if (item instanceof Received) {
            call.request(1);
        }
        return item;
    }

    void close() {
        sender.interrupt();
        call.cancel("closed", null);
        channel.shutdownNow();
    }
}

package dev.walcast;

import com.google.protobuf.InvalidProtocolBufferException;
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
import walcast.v1.Walcast.ConsumeResponse;

/**
 * One connection with one Consume call. One response is read ahead of the one that the user works on, so that the network's
 * thread parses meanwhile; a thread of its own sends.
 */
final class StreamCall {
    private static final int AHEAD = 2;
    private static final MethodDescriptor<ConsumeRequest, Received> CONSUME =
            ChangeStreamServiceGrpc.getConsumeMethod().toBuilder(
                            ProtoUtils.marshaller(ConsumeRequest.getDefaultInstance()), new ResponseMarshaller())
                    .build();

    /** What a stream hands over: a response, or why there is none. */
    sealed interface Item permits Received, Ended {}

    record Received(ConsumeResponse response, int size, WalcastException.Protocol garbled) implements Item {}

    record Ended(Status status, Metadata trailers) implements Item {}

    /** Keeps the size, which credit is counted by. */
    private static final class ResponseMarshaller implements Marshaller<Received> {
        @Override
        public InputStream stream(Received value) {
            throw new UnsupportedOperationException("responses are not sent");
        }

        @Override
        public Received parse(InputStream stream) {
            try {
                byte[] bytes = stream.readAllBytes();
                return new Received(ConsumeResponse.parseFrom(bytes), bytes.length, null);
            } catch (InvalidProtocolBufferException error) {
                return new Received(null, 0, new WalcastException.Protocol("a response is garbled", error));
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
        sender = new Thread(() -> send(open, core.outbox), "walcast-sender");
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

    private void send(ConsumeRequest open, Outbox outbox) {
        try {
            call.sendMessage(open);
            while (!Thread.currentThread().isInterrupted()) {
                call.sendMessage(outbox.await());
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

package dev.walcast;

import io.grpc.CallOptions;
import io.grpc.ManagedChannel;
import io.grpc.MethodDescriptor;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.ProtoUtils;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.util.Iterator;
import java.util.NoSuchElementException;
import walcast.v1.ChangeStreamServiceGrpc;
import walcast.v1.Walcast.ReadRetractedRequest;

/**
 * The transactions that a failover took back: the end of a lineage that never happened on the next one. Ends by itself, and is not
 * resumed when the connection breaks.
 */
public final class RetractedTransactions implements Iterator<Transaction>, AutoCloseable {
    private static final MethodDescriptor<ReadRetractedRequest, StreamCall.Received> METHOD =
            ChangeStreamServiceGrpc.getReadRetractedMethod().toBuilder(
                            ProtoUtils.marshaller(ReadRetractedRequest.getDefaultInstance()),
                            new StreamCall.ResponseMarshaller())
                    .build();

    private final ManagedChannel channel;
    private final Core core;
    private final Iterator<StreamCall.Received> responses;
    private Transaction next;

    RetractedTransactions(Target target, String lineage, Options options) {
        core = new Core(options, System::nanoTime);
        ReadRetractedRequest.Builder request = ReadRetractedRequest.newBuilder().setOldLineage(lineage);
        if (options.filter.build().getSerializedSize() > 0) {
            request.setFilter(options.filter);
        }
        var metadata = MetadataUtils.newAttachHeadersInterceptor(target.metadata());
        channel = target.connect();
        responses = ClientCalls.blockingServerStreamingCall(
                io.grpc.ClientInterceptors.intercept(channel, metadata), METHOD, CallOptions.DEFAULT, request.build());
    }

    /**
     * Waits for the next transaction. Whether there is one.
     *
     * @throws HubException if the hub refuses, or the connection breaks
     */
    @Override
    public boolean hasNext() {
        while (next == null) {
            Object item = core.poll();
            if (item instanceof Transaction transaction) {
                next = transaction;
            } else if (item == null && !receive()) {
                return false;
            }
        }
        return true;
    }

    /** Whether there was another response. */
    private boolean receive() {
        try {
            if (responses.hasNext()) {
                core.receive(responses.next().bytes());
                return true;
            }
        } catch (StatusRuntimeException refused) {
            throw HubException.of(refused.getStatus(), refused.getTrailers());
        }
        if (core.assembler.isWithinTransaction()) {
            throw new WalcastException.Protocol("the stream ended inside a transaction");
        }
        return false;
    }

    @Override
    public Transaction next() {
        if (!hasNext()) {
            throw new NoSuchElementException("there are no more");
        }
        Transaction transaction = next;
        next = null;
        return transaction;
    }

    /** Closes the connection. */
    @Override
    public void close() {
        channel.shutdownNow();
    }
}

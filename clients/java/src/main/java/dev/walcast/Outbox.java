package dev.walcast;

import java.util.function.LongSupplier;
import walcast.v1.EventOuterClass.Credit;
import walcast.v1.Walcast.ConsumeRequest;

/** What is to be sent: credit that was earned and the newest acknowledgement. Used from two threads. */
final class Outbox {
    /** Acknowledgements are sent at most this often, in nanoseconds, */
    static final long ACK_INTERVAL = 100_000_000;
    /** or when this many have gathered. */
    static final int ACK_BATCH = 1000;

    private final LongSupplier clock;
    /** Which stream it is that sends: the last one's thread may live for a while. */
    private long stream;

    private long events;
    private long bytes;
    private Position position;
    private int count;
    private long due;

    Outbox(LongSupplier clock) {
        this.clock = clock;
        this.due = clock.getAsLong();
    }

    synchronized void grant(long events, long bytes) {
        this.events += events;
        this.bytes += bytes;
        notifyAll();
    }

    synchronized void acknowledge(Position newest) {
        if (position != null && position.reaches(newest)) {
            return;
        }
        boolean first = position == null;
        position = newest;
        count++;
        if (first || count == ACK_BATCH) {
            notifyAll();
        }
    }

    /** The newest acknowledgement that was not taken. */
    synchronized Position pending() {
        return position;
    }

    /** A new stream: earlier credit is void, and an acknowledgement on another lineage would be refused there. */
    synchronized void reopen(Position resume) {
        stream++;
        notifyAll();
        events = 0;
        bytes = 0;
        count = 0;
        if (position != null && (resume == null || !resume.reaches(position))) {
            position = null;
        }
    }

    /** Which stream was opened last. */
    synchronized long stream() {
        return stream;
    }

    /** The next request, or null if there is none yet. */
    synchronized ConsumeRequest take() {
        if (events != 0 || bytes != 0) {
            Credit.Builder credit = Credit.newBuilder().setEvents(events).setBytes(bytes);
            events = 0;
            bytes = 0;
            return ConsumeRequest.newBuilder().setCredit(credit).build();
        }
        long now = clock.getAsLong();
        if (position == null || (count < ACK_BATCH && now - due < 0)) {
            return null;
        }
        ConsumeRequest request =
                ConsumeRequest.newBuilder().setAcknowledge(position.message()).build();
        position = null;
        count = 0;
        due = now + ACK_INTERVAL;
        return request;
    }

    /** The next request; waits for it. Null when another stream has been opened. */
    synchronized ConsumeRequest await(long forStream) throws InterruptedException {
        while (stream == forStream) {
            ConsumeRequest request = take();
            if (request != null) {
                return request;
            }
            if (position == null) {
                wait();
            } else {
                wait(Math.max(1, (due - clock.getAsLong() + 999_999) / 1_000_000));
            }
        }
        return null;
    }
}

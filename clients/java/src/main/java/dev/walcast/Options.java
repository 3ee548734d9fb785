package dev.walcast;

import java.time.Duration;
import java.util.HashMap;
import java.util.Map;
import java.util.function.BiConsumer;
import java.util.function.Consumer;
import walcast.v1.Walcast;

/** What a subscription asks for. */
final class Options {
    final Walcast.Filter.Builder filter = Walcast.Filter.newBuilder();
    String subscriber = "";
    Start start;
    boolean autoAck = true;
    boolean stopAtTail;
    boolean jsonAsText;
    final Map<String, Decoder> types = new HashMap<>();
    long windowEvents = 100_000;
    long windowBytes = 8L << 20;
    int maxMessageBytes = 64 << 20;
    long maxTransactionBytes = 1L << 30;
    Duration progressInterval;
    Retry retry = Retry.DEFAULT;
    Consumer<Event.Progress> onProgress;
    Consumer<Event.TimelineChanged> onTimelineChanged;
    Consumer<Event.Gap> onGap;
    Consumer<Event> onSnapshot;
    BiConsumer<HubException, Duration> onReconnect;
}

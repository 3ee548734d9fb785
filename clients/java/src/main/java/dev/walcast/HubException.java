package dev.walcast;

import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.RetryInfo;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.function.Function;

/**
 * An error from the hub. One whose reason has a class of its own is thrown as that class; what to do about it is decided by
 * the reason, never by the gRPC code alone.
 */
public class HubException extends WalcastException {
    private static final long serialVersionUID = 1;
    private static final String DOMAIN = "walcast";

    private final transient Info info;

    /** What came with an error. */
    record Info(
            String message,
            Status.Code code,
            String reason,
            Map<String, String> metadata,
            Duration retryAfter,
            List<Violation> violations) {}

    /**
     * What is wrong in the request.
     *
     * @param field path of the field
     * @param description for people
     */
    public record Violation(String field, String description) {}

    HubException(Info info) {
        super(text(info));
        this.info = info;
    }

    private static String text(Info info) {
        StringBuilder text = new StringBuilder();
        text.append(info.reason.isEmpty() ? info.code.name() : info.reason)
                .append(": ")
                .append(info.message);
        if (!info.metadata.isEmpty()) {
            text.append(' ').append(new TreeMap<>(info.metadata));
        }
        for (Violation violation : info.violations) {
            text.append("\n  ").append(violation.field).append(": ").append(violation.description);
        }
        return text.toString();
    }

    /**
     * ErrorInfo.reason.
     *
     * @return empty where the connection failed and no hub answered
     */
    public String reason() {
        return info.reason;
    }

    /**
     * The gRPC status.
     *
     * @return its code
     */
    public Status.Code code() {
        return info.code;
    }

    /**
     * ErrorInfo.metadata.
     *
     * @return by key
     */
    public Map<String, String> metadata() {
        return info.metadata;
    }

    /**
     * The delay of RetryInfo.
     *
     * @return null where trying again does not help
     */
    public Duration retryAfter() {
        return info.retryAfter;
    }

    /**
     * The fields that are wrong, from BadRequest.
     *
     * @return empty for most errors
     */
    public List<Violation> violations() {
        return info.violations;
    }

    /**
     * Whether trying again may help.
     *
     * @return whether a subscription does
     */
    public boolean isRetryable() {
        return info.retryAfter != null;
    }

    /** No hub answered, or the connection broke: an error without ErrorInfo. */
    public static final class ConnectionLost extends HubException {
        private static final long serialVersionUID = 1;
        private static final Set<Status.Code> LOST = Set.of(
                Status.Code.UNAVAILABLE,
                Status.Code.UNKNOWN,
                Status.Code.INTERNAL,
                Status.Code.CANCELLED,
                Status.Code.ABORTED,
                Status.Code.DEADLINE_EXCEEDED);

        ConnectionLost(Info info) {
            super(info);
        }

        @Override
        public boolean isRetryable() {
            return super.isRetryable() || LOST.contains(code());
        }
    }

    static HubException lost(Status.Code code, String message) {
        return new ConnectionLost(new Info(message, code, "", Map.of(), null, List.of()));
    }

    static HubException of(Status status, Metadata trailers) {
        ErrorInfo error = null;
        Duration retry = null;
        List<Violation> violations = new ArrayList<>();
        com.google.rpc.Status details = StatusProto.fromStatusAndTrailers(status, trailers);
        try {
            for (com.google.protobuf.Any detail : details.getDetailsList()) {
                if (detail.is(ErrorInfo.class)) {
                    ErrorInfo candidate = detail.unpack(ErrorInfo.class);
                    error = candidate.getDomain().equals(DOMAIN) ? candidate : error;
                } else if (detail.is(RetryInfo.class)) {
                    retry = Messages.duration(detail.unpack(RetryInfo.class).getRetryDelay());
                } else if (detail.is(BadRequest.class)) {
                    for (BadRequest.FieldViolation violation :
                            detail.unpack(BadRequest.class).getFieldViolationsList()) {
                        violations.add(new Violation(violation.getField(), violation.getDescription()));
                    }
                }
            }
        } catch (InvalidProtocolBufferException garbled) {
            return lost(status.getCode(), "details of an error are garbled: " + garbled.getMessage());
        }
        String message = status.getDescription() == null ? "" : status.getDescription();
        if (error == null) {
            String cause =
                    status.getCause() == null ? "" : " (" + status.getCause().getMessage() + ")";
            return new ConnectionLost(
                    new Info(message + cause, status.getCode(), "", Map.of(), retry, List.copyOf(violations)));
        }
        return of(new Info(
                message,
                status.getCode(),
                error.getReason(),
                Map.copyOf(error.getMetadataMap()),
                retry,
                List.copyOf(violations)));
    }

    private static HubException of(Info info) {
        Function<Info, HubException> made = BY_REASON.get(info.reason);
        return made == null ? new HubException(info) : made.apply(info);
    }

    static HubException ahead(String message) {
        return new AckAhead(new Info(message, Status.Code.FAILED_PRECONDITION, "ACK_AHEAD", Map.of(), null, List.of()));
    }

    /** The classes by reason. */
    static final Map<String, Function<Info, HubException>> BY_REASON = Map.ofEntries(
            Map.entry("POSITION_EXPIRED", PositionExpired::new),
            Map.entry("POSITION_IN_FUTURE", PositionInFuture::new),
            Map.entry("POSITION_DIVERGED", PositionDiverged::new),
            Map.entry("LINEAGE_UNKNOWN", LineageUnknown::new),
            Map.entry("ACK_AHEAD", AckAhead::new),
            Map.entry("CHECKPOINT_MISSING", CheckpointMissing::new),
            Map.entry("SUBSCRIBER_UNKNOWN", SubscriberUnknown::new),
            Map.entry("TABLE_NOT_PUBLISHED", TableNotPublished::new),
            Map.entry("PUBLICATION_MISSING", PublicationMissing::new),
            Map.entry("FILTER_INVALID", FilterInvalid::new),
            Map.entry("REQUEST_INVALID", RequestInvalid::new),
            Map.entry("SUBSCRIBER_FENCED", SubscriberFenced::new),
            Map.entry("DISK_FULL", DiskFull::new),
            Map.entry("TOO_MANY_STREAMS", TooManyStreams::new),
            Map.entry("EVENT_TOO_LARGE", EventTooLarge::new),
            Map.entry("UNAUTHENTICATED", Unauthenticated::new),
            Map.entry("PERMISSION_DENIED", PermissionDenied::new),
            Map.entry("JOURNAL_CORRUPT", JournalCorrupt::new),
            Map.entry("SLOT_LOST", SlotLost::new),
            Map.entry("FAILOVER_NOT_PROTECTED", FailoverNotProtected::new),
            Map.entry("RECOVERY_BLOCKED", RecoveryBlocked::new),
            Map.entry("STARTING", Starting::new),
            Map.entry("DRAINING", Draining::new),
            Map.entry("SOURCE_UNAVAILABLE", SourceUnavailable::new),
            Map.entry("SOURCE_STALE_PRIMARY", SourceStalePrimary::new),
            Map.entry("SOURCE_CHANGED", SourceChanged::new),
            Map.entry("SLOT_IN_USE", SlotInUse::new),
            Map.entry("PREFLIGHT_FAILED", PreflightFailed::new),
            Map.entry("DECODE_ERROR", DecodeError::new),
            Map.entry("SNAPSHOT_INTERRUPTED", SnapshotInterrupted::new),
            Map.entry("SNAPSHOT_IMPOSSIBLE", SnapshotImpossible::new),
            Map.entry("UNSUPPORTED", Unsupported::new),
            Map.entry("INTERNAL", Internal::new));

    /** The position is older than what the journal retains. Start over, from a snapshot or at the earliest. */
    public static final class PositionExpired extends HubException {
        private static final long serialVersionUID = 1;

        PositionExpired(Info info) {
            super(info);
        }

        /**
         * The LSN of the oldest position that the journal has.
         *
         * @return empty if the hub did not say
         */
        public String earliest() {
            return metadata().getOrDefault("earliest", "");
        }
    }

    /** The position lies beyond the WAL that the source has written. */
    public static final class PositionInFuture extends HubException {
        private static final long serialVersionUID = 1;

        PositionInFuture(Info info) {
            super(info);
        }
    }

    /** The position lies on a part of history that a failover took back. Undo what came after {@link #common}. */
    public static final class PositionDiverged extends HubException {
        private static final long serialVersionUID = 1;

        PositionDiverged(Info info) {
            super(info);
        }

        /**
         * The last LSN that both histories share.
         *
         * @return empty if the hub did not say
         */
        public String common() {
            return metadata().getOrDefault("common", "");
        }
    }

    /** The position belongs to a history that this hub has never seen. */
    public static final class LineageUnknown extends HubException {
        private static final long serialVersionUID = 1;

        LineageUnknown(Info info) {
            super(info);
        }
    }

    /** The acknowledged position has not been handed out, or not been sent in the live session. */
    public static final class AckAhead extends HubException {
        private static final long serialVersionUID = 1;

        AckAhead(Info info) {
            super(info);
        }
    }

    /** The subscriber has no checkpoint and no start was given. */
    public static final class CheckpointMissing extends HubException {
        private static final long serialVersionUID = 1;

        CheckpointMissing(Info info) {
            super(info);
        }
    }

    /** There is no subscriber of this name. */
    public static final class SubscriberUnknown extends HubException {
        private static final long serialVersionUID = 1;

        SubscriberUnknown(Info info) {
            super(info);
        }
    }

    /** The publication does not contain the table. */
    public static final class TableNotPublished extends HubException {
        private static final long serialVersionUID = 1;

        TableNotPublished(Info info) {
            super(info);
        }

        /**
         * {@code schema.table}.
         *
         * @return empty if the hub did not say
         */
        public String table() {
            return metadata().getOrDefault("table", "");
        }
    }

    /** The publication does not exist at the source. */
    public static final class PublicationMissing extends HubException {
        private static final long serialVersionUID = 1;

        PublicationMissing(Info info) {
            super(info);
        }
    }

    /** The filter cannot be applied; the violations name the place. */
    public static final class FilterInvalid extends HubException {
        private static final long serialVersionUID = 1;

        FilterInvalid(Info info) {
            super(info);
        }
    }

    /** The request is not well formed; the violations name the place. */
    public static final class RequestInvalid extends HubException {
        private static final long serialVersionUID = 1;

        RequestInvalid(Info info) {
            super(info);
        }
    }

    /** A newer stream of the same subscriber has taken over. Never retried: the two would fence each other for ever. */
    public static final class SubscriberFenced extends HubException {
        private static final long serialVersionUID = 1;

        SubscriberFenced(Info info) {
            super(info);
        }
    }

    /** The hub's data directory has no room. */
    public static final class DiskFull extends HubException {
        private static final long serialVersionUID = 1;

        DiskFull(Info info) {
            super(info);
        }
    }

    /** The limit on streams is reached. */
    public static final class TooManyStreams extends HubException {
        private static final long serialVersionUID = 1;

        TooManyStreams(Info info) {
            super(info);
        }
    }

    /** One event is larger than {@code maxMessageBytes}. */
    public static final class EventTooLarge extends HubException {
        private static final long serialVersionUID = 1;

        EventTooLarge(Info info) {
            super(info);
        }

        /**
         * Size of the event, in bytes.
         *
         * @return 0 if the hub did not say
         */
        public long bytes() {
            return Long.parseLong(metadata().getOrDefault("bytes", "0"));
        }

        /**
         * End of the transaction that holds it.
         *
         * @return empty if the hub did not say
         */
        public String lsn() {
            return metadata().getOrDefault("lsn", "");
        }
    }

    /** The call carries no valid bearer token. */
    public static final class Unauthenticated extends HubException {
        private static final long serialVersionUID = 1;

        Unauthenticated(Info info) {
            super(info);
        }
    }

    /** The principal may not do this. */
    public static final class PermissionDenied extends HubException {
        private static final long serialVersionUID = 1;

        PermissionDenied(Info info) {
            super(info);
        }

        /**
         * {@code schema.table}, where it is about a table.
         *
         * @return empty if the hub did not say
         */
        public String table() {
            return metadata().getOrDefault("table", "");
        }
    }

    /** A part of the hub's journal is damaged; the metadata name the range. */
    public static final class JournalCorrupt extends HubException {
        private static final long serialVersionUID = 1;

        JournalCorrupt(Info info) {
            super(info);
        }
    }

    /** The replication slot no longer covers what the journal lacks; metadata {@code from} and {@code to} name the gap. */
    public static final class SlotLost extends HubException {
        private static final long serialVersionUID = 1;

        SlotLost(Info info) {
            super(info);
        }
    }

    /** Changes of a published table are not all in the log tables, so a lost slot would lose them. */
    public static final class FailoverNotProtected extends HubException {
        private static final long serialVersionUID = 1;

        FailoverNotProtected(Info info) {
            super(info);
        }
    }

    /** A new slot waits for a transaction that does not end; the message names it. */
    public static final class RecoveryBlocked extends HubException {
        private static final long serialVersionUID = 1;

        RecoveryBlocked(Info info) {
            super(info);
        }
    }

    /** The hub is not ready yet. */
    public static final class Starting extends HubException {
        private static final long serialVersionUID = 1;

        Starting(Info info) {
            super(info);
        }
    }

    /** The hub is shutting down. */
    public static final class Draining extends HubException {
        private static final long serialVersionUID = 1;

        Draining(Info info) {
            super(info);
        }
    }

    /** The call needs PostgreSQL, which is away. */
    public static final class SourceUnavailable extends HubException {
        private static final long serialVersionUID = 1;

        SourceUnavailable(Info info) {
            super(info);
        }
    }

    /** The server is behind the history that the journal has already seen. */
    public static final class SourceStalePrimary extends HubException {
        private static final long serialVersionUID = 1;

        SourceStalePrimary(Info info) {
            super(info);
        }
    }

    /** The server or its database is not the journal's. */
    public static final class SourceChanged extends HubException {
        private static final long serialVersionUID = 1;

        SourceChanged(Info info) {
            super(info);
        }
    }

    /** Another process streams from the slot. */
    public static final class SlotInUse extends HubException {
        private static final long serialVersionUID = 1;

        SlotInUse(Info info) {
            super(info);
        }
    }

    /** The source does not meet a precondition; {@code walcast doctor} lists what to run. */
    public static final class PreflightFailed extends HubException {
        private static final long serialVersionUID = 1;

        PreflightFailed(Info info) {
            super(info);
        }
    }

    /** The hub cannot decode a message from the source. */
    public static final class DecodeError extends HubException {
        private static final long serialVersionUID = 1;

        DecodeError(Info info) {
            super(info);
        }
    }

    /** A snapshot could not be read to its end. Retried: it goes on from the last position, or starts over and says so. */
    public static final class SnapshotInterrupted extends HubException {
        private static final long serialVersionUID = 1;

        SnapshotInterrupted(Info info) {
            super(info);
        }
    }

    /** The rows of a table cannot be read in this way; the message says what would be possible. */
    public static final class SnapshotImpossible extends HubException {
        private static final long serialVersionUID = 1;

        SnapshotImpossible(Info info) {
            super(info);
        }

        /**
         * {@code schema.table}.
         *
         * @return empty if the hub did not say
         */
        public String table() {
            return metadata().getOrDefault("table", "");
        }
    }

    /** This hub does not offer the requested feature. */
    public static final class Unsupported extends HubException {
        private static final long serialVersionUID = 1;

        Unsupported(Info info) {
            super(info);
        }
    }

    /** A defect in the hub. */
    public static final class Internal extends HubException {
        private static final long serialVersionUID = 1;

        Internal(Info info) {
            super(info);
        }
    }
}

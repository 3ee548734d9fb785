package dev.walcast;

import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.OffsetTime;
import java.time.ZoneOffset;
import java.time.format.DateTimeFormatter;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.UUID;

/** Java's runner for clients/conformance: one subscription, driven by lines on stdin. */
public final class ConformanceRunner {
    private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    private static final DateTimeFormatter STAMP = DateTimeFormatter.ofPattern("uuuu-MM-dd'T'HH:mm:ss.SSSSSS");
    private static final DateTimeFormatter CLOCK = DateTimeFormatter.ofPattern("HH:mm:ss.SSSSSS");

    private ConformanceRunner() {}

    /** Thrown out of onProgress when the asked-for LSN has been reached. */
    private static final class Reached extends RuntimeException {
        private static final long serialVersionUID = 1;
    }

    // -- values, as README.md of the conformance scenario writes them

    private static List<Object> tagged(String tag, Object value) {
        List<Object> list = new ArrayList<>();
        list.add(tag);
        list.add(value);
        return list;
    }

    private static Object value(Object value, String type) {
        if (value == null) {
            return null;
        }
        if (value == Unchanged.UNCHANGED) {
            return List.of("unchanged");
        }
        if (type.equals("json") || type.equals("jsonb")) {
            return tagged("json", value);
        }
        if (value instanceof List<?> list) {
            List<Object> elements = new ArrayList<>();
            list.forEach(element -> elements.add(value(element, type.startsWith("_") ? type.substring(1) : type)));
            return tagged("array", elements);
        }
        if (value instanceof Unrepresentable special) {
            return tagged(special.typeName().equals("numeric") ? "decimal" : "special", special.text());
        }
        if (value instanceof LocalDate || value instanceof LocalDateTime || value instanceof Instant) {
            return date(value);
        }
        return simple(value);
    }

    private static Object simple(Object value) {
        if (value instanceof Boolean) {
            return tagged("bool", value);
        } else if (value instanceof Long) {
            return tagged("int", value.toString());
        } else if (value instanceof Double number) {
            String bits = HexFormat.of().toHexDigits(Double.doubleToRawLongBits(number));
            return tagged("float", number.isNaN() ? "nan" : bits);
        } else if (value instanceof BigDecimal decimal) {
            return tagged("decimal", decimal.toPlainString());
        } else if (value instanceof String) {
            return tagged("text", value);
        } else if (value instanceof byte[] bytes) {
            return tagged("bytes", HexFormat.of().formatHex(bytes));
        } else if (value instanceof UUID) {
            return tagged("uuid", value.toString());
        } else if (value instanceof LocalTime time) {
            return tagged("time", CLOCK.format(time));
        } else if (value instanceof OffsetTime time) {
            return tagged(
                    "time",
                    CLOCK.format(time) + DateTimeFormatter.ofPattern("xxx").format(time));
        } else if (value instanceof Interval interval) {
            return tagged("interval", List.of(interval.months(), interval.days(), interval.microseconds()));
        } else if (value instanceof Range) {
            return tagged("range", value.toString());
        }
        throw new IllegalStateException(value.getClass().toString());
    }

    private static Object date(Object value) {
        if (value instanceof LocalDate date) {
            return tagged(date.getYear() > 9999 ? "special" : "date", unsigned(date.toString()));
        }
        boolean zoned = value instanceof Instant;
        LocalDateTime stamp = value instanceof Instant instant
                ? instant.atOffset(ZoneOffset.UTC).toLocalDateTime()
                : (LocalDateTime) value;
        if (stamp.getYear() > 9999) {
            String text = unsigned(stamp.toLocalDate().toString()) + " "
                    + CLOCK.format(stamp).replaceAll("\\.?0*$", "");
            return tagged("special", text + (zoned ? "+00" : ""));
        }
        return tagged(zoned ? "timestamptz" : "timestamp", STAMP.format(stamp));
    }

    private static String unsigned(String year) {
        return year.startsWith("+") ? year.substring(1) : year;
    }

    private static Object row(Change change, Row row) {
        if (row == null) {
            return null;
        }
        Map<String, Object> out = new LinkedHashMap<>();
        for (Column column : change.relation().columns()) {
            if (row.containsKey(column.name())) {
                out.put(column.name(), value(row.get(column.name()), column.typeName()));
            }
        }
        return out;
    }

    private static String json(Object value) {
        if (value instanceof Map<?, ?> map) {
            List<String> members = new ArrayList<>();
            map.forEach((name, member) -> members.add(json(name) + ": " + json(member)));
            return "{" + String.join(", ", members) + "}";
        }
        if (value instanceof List<?> list) {
            return "["
                    + String.join(
                            ", ", list.stream().map(ConformanceRunner::json).toList()) + "]";
        }
        if (!(value instanceof String text)) {
            return String.valueOf(value);
        }
        StringBuilder out = new StringBuilder("\"");
        text.chars().forEach(c -> {
            if (c == '"' || c == '\\') {
                out.append('\\').append((char) c);
            } else if (c < 0x20) {
                out.append(String.format("\\u%04x", c));
            } else {
                out.append((char) c);
            }
        });
        return out.append('"').toString();
    }

    private static void say(String event, Object... data) {
        Map<String, Object> line = new LinkedHashMap<>();
        line.put("event", event);
        for (int at = 0; at < data.length; at += 2) {
            line.put((String) data[at], data[at + 1]);
        }
        OUT.println(json(line));
    }

    private static void say(Transaction tx) {
        List<Object> changes = new ArrayList<>();
        for (Change change : tx) {
            Map<String, Object> out = new LinkedHashMap<>();
            out.put("operation", change.operation().toString());
            out.put("table", change.table());
            out.put("ordinal", change.ordinal());
            out.put("before", row(change, change.before()));
            out.put("after", row(change, change.after()));
            out.put("changed", change.changedColumns());
            out.put(
                    "transition",
                    change.transition() == null
                            ? null
                            : change.transition().name().toLowerCase());
            changes.add(out);
        }
        say(
                "transaction",
                "position",
                tx.position().toString(),
                "commit_lsn",
                tx.commitLsn(),
                "xid",
                tx.xid(),
                "commit_time",
                tx.commitTime() == null ? null : tx.commitTime().toString(),
                "snapshot",
                tx.snapshotId().isEmpty() ? null : tx.snapshotId(),
                "changes",
                changes);
    }

    private static void say(Event event) {
        if (event instanceof Event.SnapshotBegin begin) {
            say(
                    "snapshot",
                    "step",
                    "begin",
                    "snapshot",
                    begin.snapshotId(),
                    "restarted",
                    begin.restarted(),
                    "tables",
                    List.copyOf(begin.tables().keySet()));
        } else if (event instanceof Event.SnapshotTableEnd end) {
            say(
                    "snapshot",
                    "step",
                    "table_end",
                    "snapshot",
                    end.snapshotId(),
                    "table",
                    end.table(),
                    "rows",
                    end.rows());
        } else if (event instanceof Event.SnapshotEnd end) {
            say(
                    "snapshot",
                    "step",
                    "end",
                    "snapshot",
                    end.snapshotId(),
                    "rows",
                    end.rows(),
                    "position",
                    end.position().toString());
        }
    }

    private static void say(Event.TimelineChanged changed) {
        List<Object> retracted = new ArrayList<>();
        for (Event.Retracted entry : changed.retracted()) {
            Map<String, Object> out = new LinkedHashMap<>();
            out.put("position", entry.position().toString());
            out.put("xid", entry.transaction().xid());
            out.put("changes", entry.changes());
            retracted.add(out);
        }
        say(
                "timeline_changed",
                "old_lineage",
                changed.oldLineage(),
                "new_lineage",
                changed.newLineage(),
                "switch_lsn",
                changed.switchLsn(),
                "position",
                changed.position().toString(),
                "retracted",
                retracted);
    }

    private static void say(WalcastException error) {
        HubException hub = error instanceof HubException refused ? refused : null;
        List<Object> violations = new ArrayList<>();
        if (hub != null) {
            hub.violations().forEach(violation -> violations.add(List.of(violation.field(), violation.description())));
        }
        say(
                "error",
                "reason",
                hub == null ? error.getClass().getSimpleName() : hub.reason(),
                "metadata",
                hub == null ? Map.of() : hub.metadata(),
                "violations",
                violations,
                "message",
                String.valueOf(error.getMessage()));
    }

    // -- the request

    private static String[] texts(Object list) {
        return list == null ? new String[0] : ((List<?>) list).toArray(new String[0]);
    }

    private static Client client(Map<?, ?> request) {
        Client.Builder builder = Client.builder((String) request.get("address"));
        if (request.get("token") != null) {
            builder.token((String) request.get("token"));
        }
        if (request.get("tls") instanceof Map<?, ?> files) {
            Tls tls = Tls.trusting(Path.of((String) files.get("ca")));
            if (files.get("cert") != null) {
                tls = tls.identity(Path.of((String) files.get("cert")), Path.of((String) files.get("key")));
            }
            builder.tls(tls);
        }
        return builder.build();
    }

    private static Subscription subscribe(Client client, Map<?, ?> request, Position[] goal) {
        SubscriptionBuilder builder = client.subscription()
                .tables(texts(request.get("tables")))
                .excludeTables(texts(request.get("exclude_tables")))
                .columns(texts(request.get("columns")))
                .progressInterval(Duration.ofMillis(200))
                .onSnapshot(ConformanceRunner::say)
                .onReconnect((error, delay) -> say("reconnect", "reason", error.reason()))
                .onProgress(progress -> {
                    if (goal[0] != null
                            && progress.position()
                                    .reaches(new Position(
                                            goal[0].lsn(), progress.position().lineage()))) {
                        throw new Reached();
                    }
                });
        for (String operation : texts(request.get("operations"))) {
            builder.operations(Operation.valueOf(operation.toUpperCase()));
        }
        if (request.get("where") != null) {
            builder.where(request.get("where"));
        }
        if (request.get("subscriber") != null) {
            builder.subscriber((String) request.get("subscriber"));
        }
        if (request.get("start") != null) {
            builder.start(Start.parse((String) request.get("start")));
        }
        if (request.get("snapshot_mode") != null) {
            builder.start(
                    new Start.Snapshot(SnapshotMode.valueOf(((String) request.get("snapshot_mode")).toUpperCase()), 0));
        }
        if (Boolean.FALSE.equals(request.get("auto_ack"))) {
            builder.autoAck(false);
        }
        if (request.get("window_events") instanceof Long events) {
            builder.window(events, 8 << 20);
        }
        if (request.get("give_up_after") != null) {
            double seconds = Double.parseDouble(request.get("give_up_after").toString());
            builder.retry(Retry.DEFAULT.giveUpAfter(Duration.ofMillis((long) (seconds * 1000))));
        }
        return builder.subscribe();
    }

    private static void obey(
            Client client, String name, Subscription stream, String command, String argument, Position[] goal) {
        switch (command) {
            case "next" -> {
                for (int count = Integer.parseInt(argument); count > 0; count--) {
                    say(stream.next());
                }
            }
            case "until" -> {
                for (goal[0] = new Position(argument, ""); goal[0] != null; ) {
                    try {
                        while (stream.hasNext()) {
                            say(stream.next());
                        }
                    } catch (Reached reached) {
                        goal[0] = null;
                    } catch (WalcastException.TimelineChanged changed) {
                        say(changed.event());
                    } catch (WalcastException.Gap gap) {
                        say(
                                "gap",
                                "after",
                                gap.event().after().toString(),
                                "up_to",
                                gap.event().upTo().toString());
                    }
                }
            }
            case "backfill" -> {
                String[] words = argument.split(" ");
                int perSecond = words.length > 1 ? Integer.parseInt(words[1]) : 0;
                Backfill rows = Backfill.of(words[0]).maxRowsPerSecond(perSecond);
                say("backfill", "snapshot", client.startBackfill(name, rows));
            }
            case "pause", "resume", "cancel" ->
                client.backfill(name, argument, Client.BackfillAction.valueOf(command.toUpperCase(Locale.ROOT)));
            case "retracted" -> {
                try (RetractedTransactions retracted = client.subscription().readRetracted(argument)) {
                    while (retracted.hasNext()) {
                        say(retracted.next());
                    }
                }
            }
            case "ack" -> stream.ack();
            case "flush" -> say("flushed", "checkpoint", String.valueOf(stream.flush()));
            default -> throw new IllegalArgumentException(command);
        }
        say("done");
    }

    private static int run(Map<?, ?> request) throws IOException {
        BufferedReader commands = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        Position[] goal = new Position[1];
        try (Client client = client(request);
                Subscription stream = subscribe(client, request, goal)) {
            try {
                for (String line = commands.readLine(); line != null; line = commands.readLine()) {
                    String[] words = line.strip().split(" ", 2);
                    if (words[0].equals("close")) {
                        break;
                    }
                    obey(
                            client,
                            (String) request.get("subscriber"),
                            stream,
                            words[0],
                            words.length > 1 ? words[1] : "",
                            goal);
                }
            } catch (WalcastException error) {
                say(error);
                return 1;
            }
        }
        say("closed");
        return 0;
    }

    /**
     * Runs it.
     *
     * @param arguments the request as JSON
     * @throws IOException if stdin breaks
     */
    public static void main(String[] arguments) throws IOException {
        System.exit(run((Map<?, ?>) Json.parse(arguments[0])));
    }
}

package dev.walcast;

import java.math.BigDecimal;
import java.time.DateTimeException;
import java.time.Instant;
import java.time.LocalDate;
import java.time.LocalDateTime;
import java.time.LocalTime;
import java.time.OffsetTime;
import java.time.ZoneOffset;
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.UUID;

/**
 * Decoders of text by type name. The hub pins ISO dates, UTC and IntervalStyle postgres, so the formats are few and parsed
 * by hand: java.time's own parsers cost more than everything else together.
 */
final class Decoders {
    private static final Map<String, Decoder> SCALARS = scalars();
    private static final Map<String, String> RANGES = Map.of(
            "int4range", "int4",
            "int8range", "int8",
            "numrange", "numeric",
            "daterange", "date",
            "tsrange", "timestamp",
            "tstzrange", "timestamptz");
    private static final List<String> NATIVE =
            List.of("bool", "int2", "int4", "int8", "oid", "float4", "float8", "bytea");
    private static final String[] TEXTS =
            ("text varchar bpchar name char xml inet cidr macaddr macaddr8 bit varbit money "
                            + "point lseg path polygon line circle tsvector tsquery pg_lsn pg_snapshot txid_snapshot jsonpath xid "
                            + "xid8 cid tid refcursor regclass regtype regproc regprocedure regoper regoperator regrole "
                            + "regnamespace regconfig regdictionary regcollation aclitem")
                    .split(" ");
    private static final Map<String, Decoder> BUILTIN = builtin();

    private Decoders() {}

    /** Decoders by type name; types without one stay text. */
    static Map<String, Decoder> of(boolean jsonAsText, Map<String, Decoder> extra) {
        Map<String, Decoder> table = new HashMap<>(BUILTIN);
        if (jsonAsText) {
            for (String name : List.of("json", "jsonb")) {
                table.remove(name);
                table.put("_" + name, array(text -> text, ','));
            }
        }
        table.putAll(extra);
        return table;
    }

    private static Map<String, Decoder> scalars() {
        Map<String, Decoder> table = new HashMap<>();
        table.put("bool", text -> text.equals("t"));
        for (String name : List.of("int2", "int4", "int8", "oid")) {
            table.put(name, Long::valueOf);
        }
        table.put("float4", Double::valueOf);
        table.put("float8", Double::valueOf);
        table.put("bytea", text -> HexFormat.of().parseHex(text, 2, text.length()));
        table.put("numeric", Decoders::numeric);
        table.put("date", text -> temporal("date", text, Decoders::date));
        table.put("time", text -> temporal("time", text, clock -> time(clock, 0, clock.length())));
        table.put("timetz", text -> temporal("timetz", text, Decoders::timetz));
        table.put("timestamp", text -> temporal("timestamp", text, stamp -> timestamp(stamp, stamp.length())));
        table.put("timestamptz", text -> temporal("timestamptz", text, Decoders::timestamptz));
        table.put("interval", Interval::parse);
        table.put("uuid", UUID::fromString);
        table.put("json", Json::parse);
        table.put("jsonb", Json::parse);
        return table;
    }

    private static Map<String, Decoder> builtin() {
        Map<String, Decoder> table = new HashMap<>();
        SCALARS.forEach((name, decode) -> {
            if (!NATIVE.contains(name)) {
                table.put(name, decode);
            }
            table.put("_" + name, array(decode, ','));
        });
        RANGES.forEach((name, element) -> {
            Decoder one = range(SCALARS.get(element));
            Decoder several = multirange(SCALARS.get(element));
            String multi = name.replace("range", "multirange");
            table.put(name, one);
            table.put(multi, several);
            table.put("_" + name, array(one, ','));
            table.put("_" + multi, array(several, ','));
        });
        for (String name : TEXTS) {
            table.put("_" + name, array(text -> text, ','));
        }
        table.put("_box", array(text -> text, ';'));
        return Map.copyOf(table);
    }

    // -- numbers, dates and times

    private static Object numeric(String text) {
        char last = text.charAt(text.length() - 1);
        if (last < '0' || last > '9') {
            return new Unrepresentable("numeric", text);
        }
        return new BigDecimal(text);
    }

    private static Object temporal(String type, String text, Decoder parse) {
        char last = text.charAt(text.length() - 1);
        if (last < '0' || last > '9') { // infinity, BC
            return new Unrepresentable(type, text);
        }
        try {
            return parse.decode(text);
        } catch (DateTimeException outside) {
            return new Unrepresentable(type, text);
        }
    }

    private static int digits(String text, int from, int to) {
        int value = 0;
        if (from >= to || to > text.length()) {
            throw new IllegalArgumentException("not a date or time: " + text);
        }
        for (int at = from; at < to; at++) {
            int digit = text.charAt(at) - '0';
            if (digit < 0 || digit > 9) {
                throw new IllegalArgumentException("not a date or time: " + text);
            }
            value = value * 10 + digit;
        }
        return value;
    }

    private static LocalDate date(String text) {
        return date(text, text.length());
    }

    /** {@code YYYY-MM-DD}; the year may be longer. */
    private static LocalDate date(String text, int end) {
        return LocalDate.of(digits(text, 0, end - 6), digits(text, end - 5, end - 3), digits(text, end - 2, end));
    }

    /** {@code HH:MM:SS[.ffffff]}; 24:00:00 is a DateTimeException. */
    private static LocalTime time(String text, int from, int end) {
        int nanos = 0;
        if (end > from + 9) {
            nanos = digits(text, from + 9, end);
            for (int missing = end - from - 9; missing < 9; missing++) {
                nanos *= 10;
            }
        }
        return LocalTime.of(
                digits(text, from, from + 2),
                digits(text, from + 3, from + 5),
                digits(text, from + 6, from + 8),
                nanos);
    }

    private static int offsetAt(String text, int from) {
        for (int at = from; at < text.length(); at++) {
            if (text.charAt(at) == '+' || text.charAt(at) == '-') {
                return at;
            }
        }
        throw new IllegalArgumentException("no offset: " + text);
    }

    /** {@code +HH[:MM[:SS]]}. */
    private static ZoneOffset offset(String text, int at) {
        int seconds = digits(text, at + 1, at + 3) * 3600;
        if (text.length() > at + 3) {
            seconds += digits(text, at + 4, at + 6) * 60;
        }
        if (text.length() > at + 6) {
            seconds += digits(text, at + 7, at + 9);
        }
        return ZoneOffset.ofTotalSeconds(text.charAt(at) == '-' ? -seconds : seconds);
    }

    private static OffsetTime timetz(String text) {
        int at = offsetAt(text, 0);
        return time(text, 0, at).atOffset(offset(text, at));
    }

    private static LocalDateTime timestamp(String text, int end) {
        int space = text.indexOf(' ');
        if (space < 0) {
            throw new IllegalArgumentException("not a timestamp: " + text);
        }
        return LocalDateTime.of(date(text, space), time(text, space + 1, end));
    }

    private static Instant timestamptz(String text) {
        int at = offsetAt(text, text.indexOf(' ') + 1);
        return timestamp(text, at).toInstant(offset(text, at));
    }

    // -- arrays and ranges

    /** Nested lists, NULL as null, lower bounds dropped. */
    static Decoder array(Decoder element, char delimiter) {
        return text -> {
            int at = text.charAt(0) == '[' ? text.indexOf('=') + 1 : 0;
            ArrayText array = new ArrayText(text, at, element, delimiter);
            List<Object> list = array.list();
            if (array.at != text.length()) {
                throw array.wrong();
            }
            return list;
        };
    }

    private static final class ArrayText {
        private final String text;
        private final Decoder element;
        private final char delimiter;
        private int at;

        private ArrayText(String text, int at, Decoder element, char delimiter) {
            this.text = text;
            this.at = at;
            this.element = element;
            this.delimiter = delimiter;
        }

        private IllegalArgumentException wrong() {
            return new IllegalArgumentException("not an array: " + text);
        }

        private char peek() {
            if (at >= text.length()) {
                throw wrong();
            }
            return text.charAt(at);
        }

        private List<Object> list() {
            if (peek() != '{') {
                throw wrong();
            }
            at++;
            List<Object> list = new ArrayList<>();
            if (peek() == '}') {
                at++;
                return Collections.unmodifiableList(list);
            }
            while (true) {
                list.add(item());
                char mark = peek();
                at++;
                if (mark == '}') {
                    return Collections.unmodifiableList(list);
                }
                if (mark != delimiter) {
                    throw wrong();
                }
            }
        }

        private Object item() {
            char first = peek();
            if (first == '{') {
                return list();
            }
            if (first == '"') {
                return element.decode(quoted());
            }
            int start = at;
            while (peek() != delimiter && text.charAt(at) != '}') {
                at++;
            }
            String plain = text.substring(start, at);
            return plain.equals("NULL") ? null : element.decode(plain);
        }

        private String quoted() {
            StringBuilder out = new StringBuilder();
            at++;
            while (peek() != '"') {
                if (text.charAt(at) == '\\') {
                    at++;
                }
                out.append(peek());
                at++;
            }
            at++;
            return out.toString();
        }
    }

    static Decoder range(Decoder element) {
        return text -> {
            RangeText range = new RangeText(text, element);
            Range one = range.one();
            if (range.at != text.length()) {
                throw range.wrong();
            }
            return one;
        };
    }

    static Decoder multirange(Decoder element) {
        return text -> {
            RangeText ranges = new RangeText(text, element);
            List<Range> several = new ArrayList<>();
            ranges.at = 1;
            while (ranges.peek() != '}') {
                if (ranges.peek() == ',') {
                    ranges.at++;
                }
                several.add(ranges.one());
            }
            return Collections.unmodifiableList(several);
        };
    }

    private static final class RangeText {
        private final String text;
        private final Decoder element;
        private int at;

        private RangeText(String text, Decoder element) {
            this.text = text;
            this.element = element;
        }

        private IllegalArgumentException wrong() {
            return new IllegalArgumentException("not a range: " + text);
        }

        private char peek() {
            if (at >= text.length()) {
                throw wrong();
            }
            return text.charAt(at);
        }

        private Range one() {
            if (text.startsWith("empty", at)) {
                at += 5;
                return Range.EMPTY;
            }
            char open = peek();
            at++;
            Object lower = bound(",");
            at++;
            Object upper = bound("])");
            char close = peek();
            at++;
            if ("[(".indexOf(open) < 0) {
                throw wrong();
            }
            return new Range(lower, upper, open == '[', close == ']', false);
        }

        /** Unbounded is null. A quote is doubled or escaped inside of quotes. */
        private Object bound(String ends) {
            StringBuilder out = new StringBuilder();
            boolean present = false;
            boolean quoted = false;
            while (quoted || ends.indexOf(peek()) < 0) {
                present = true;
                char next = peek();
                at++;
                if (next == '"' && quoted && at < text.length() && text.charAt(at) == '"') {
                    out.append('"');
                    at++;
                } else if (next == '"') {
                    quoted = !quoted;
                } else if (next == '\\') {
                    out.append(peek());
                    at++;
                } else {
                    out.append(next);
                }
            }
            return present ? element.decode(out.toString()) : null;
        }
    }
}

package dev.walcast;

import java.math.BigDecimal;
import java.math.BigInteger;
import java.util.ArrayList;
import java.util.Collections;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * JSON as PostgreSQL prints it: Map, List, String, Boolean, null; Long or BigInteger for integers and BigDecimal for other
 * numbers, so that none loses a digit.
 */
final class Json {
    private static final int MAX_DEPTH = 1000;
    private final String text;
    private int at;
    private int depth;

    private Json(String text) {
        this.text = text;
    }

    static Object parse(String text) {
        Json json = new Json(text);
        Object value = json.value();
        json.blank();
        if (json.at != text.length()) {
            throw json.wrong();
        }
        return value;
    }

    private IllegalArgumentException wrong() {
        return new IllegalArgumentException("not JSON at " + at);
    }

    private void blank() {
        while (at < text.length() && " \t\r\n".indexOf(text.charAt(at)) >= 0) {
            at++;
        }
    }

    private char peek() {
        blank();
        if (at >= text.length()) {
            throw wrong();
        }
        return text.charAt(at);
    }

    private Object value() {
        char first = peek();
        if (first != '{' && first != '[') {
            return scalar(first);
        }
        if (++depth > MAX_DEPTH) {
            throw new IllegalArgumentException("JSON is nested deeper than " + MAX_DEPTH + "; take it as text");
        }
        Object value = first == '{' ? object() : array();
        depth--;
        return value;
    }

    private Object scalar(char first) {
        return switch (first) {
            case '"' -> string();
            case 't' -> word("true", Boolean.TRUE);
            case 'f' -> word("false", Boolean.FALSE);
            case 'n' -> word("null", null);
            default -> number();
        };
    }

    private Map<String, Object> object() {
        Map<String, Object> members = new LinkedHashMap<>();
        at++;
        if (peek() == '}') {
            at++;
            return Collections.unmodifiableMap(members);
        }
        while (true) {
            if (peek() != '"') {
                throw wrong();
            }
            String name = string();
            if (peek() != ':') {
                throw wrong();
            }
            at++;
            members.put(name, value());
            if (ends('}')) {
                return Collections.unmodifiableMap(members);
            }
        }
    }

    private List<Object> array() {
        List<Object> elements = new ArrayList<>();
        at++;
        if (peek() == ']') {
            at++;
            return Collections.unmodifiableList(elements);
        }
        while (true) {
            elements.add(value());
            if (ends(']')) {
                return Collections.unmodifiableList(elements);
            }
        }
    }

    private boolean ends(char close) {
        char mark = peek();
        if (mark != close && mark != ',') {
            throw wrong();
        }
        at++;
        return mark == close;
    }

    private Object word(String word, Object value) {
        if (!text.startsWith(word, at)) {
            throw wrong();
        }
        at += word.length();
        return value;
    }

    private Object number() {
        int start = at;
        boolean whole = true;
        while (at < text.length() && "+-.eE0123456789".indexOf(text.charAt(at)) >= 0) {
            whole &= ".eE".indexOf(text.charAt(at)) < 0;
            at++;
        }
        if (start == at) {
            throw wrong();
        }
        String digits = text.substring(start, at);
        if (!whole) {
            return new BigDecimal(digits);
        }
        return digits.length() < 19 ? (Object) Long.valueOf(digits) : integer(new BigInteger(digits));
    }

    private static Object integer(BigInteger value) {
        return value.bitLength() < 64 ? (Object) value.longValue() : value;
    }

    private String string() {
        int close = at + 1;
        while (close < text.length() && text.charAt(close) != '"' && text.charAt(close) != '\\') {
            close++;
        }
        StringBuilder out = new StringBuilder(text.substring(at + 1, close));
        at = close;
        while (at < text.length()) {
            char next = text.charAt(at++);
            if (next == '"') {
                return out.toString();
            }
            out.append(next == '\\' ? escaped() : next);
        }
        throw wrong();
    }

    private char escaped() {
        if (at >= text.length()) {
            throw wrong();
        }
        char mark = text.charAt(at++);
        switch (mark) {
            case '"', '\\', '/':
                return mark;
            case 'b':
                return '\b';
            case 'f':
                return '\f';
            case 'n':
                return '\n';
            case 'r':
                return '\r';
            case 't':
                return '\t';
            case 'u':
                if (at + 4 > text.length()) {
                    throw wrong();
                }
                at += 4;
                return (char) Integer.parseInt(text, at - 4, at, 16);
            default:
                throw wrong();
        }
    }
}

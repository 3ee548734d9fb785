package dev.walcast;

import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import walcast.v1.EventOuterClass;
import walcast.v1.EventOuterClass.Missing;
import walcast.v1.EventOuterClass.Value;

/** A Change as it came: its numbers, and where its rows are in the response. */
final class RawChange {
    private static final int OPERATION = Wire.varint(EventOuterClass.Change.OPERATION_FIELD_NUMBER);
    private static final int RELATION = Wire.varint(EventOuterClass.Change.RELATION_ID_FIELD_NUMBER);
    private static final int ORDINAL = Wire.varint(EventOuterClass.Change.ORDINAL_FIELD_NUMBER);
    private static final int BEFORE = Wire.bytes(EventOuterClass.Change.BEFORE_ROW_FIELD_NUMBER);
    private static final int AFTER = Wire.bytes(EventOuterClass.Change.AFTER_ROW_FIELD_NUMBER);
    private static final int TRANSITION = Wire.varint(EventOuterClass.Change.TRANSITION_FIELD_NUMBER);
    private static final int VALUES = Wire.bytes(EventOuterClass.Row.VALUES_FIELD_NUMBER);
    private static final int MISSING = Wire.varint(Value.MISSING_FIELD_NUMBER);
    private static final int BOOL = Wire.varint(Value.BOOL_VALUE_FIELD_NUMBER);
    private static final int INT = Wire.varint(Value.INT_VALUE_FIELD_NUMBER);
    private static final int FLOAT = Wire.fixed64(Value.FLOAT_VALUE_FIELD_NUMBER);
    private static final int BYTES = Wire.bytes(Value.BYTES_VALUE_FIELD_NUMBER);
    private static final int TEXT = Wire.bytes(Value.TEXT_FIELD_NUMBER);
    private static final int RAW_TEXT = Wire.bytes(Value.RAW_TEXT_FIELD_NUMBER);

    final byte[] bytes;
    int operation;
    int relationId;
    long ordinal;
    int transition;
    private int beforeAt = -1;
    private int beforeEnd;
    private int afterAt = -1;
    private int afterEnd;

    RawChange(Wire wire) {
        this.bytes = wire.bytes;
        while (wire.hasMore()) {
            int tag = wire.readTag();
            if (tag == OPERATION) {
                operation = (int) wire.readVarint();
            } else if (tag == RELATION) {
                relationId = (int) wire.readVarint();
            } else if (tag == ORDINAL) {
                ordinal = wire.readVarint();
            } else if (tag == AFTER) {
                int length = wire.readLength();
                afterAt = wire.at;
                afterEnd = wire.at += length;
            } else if (tag == BEFORE) {
                int length = wire.readLength();
                beforeAt = wire.at;
                beforeEnd = wire.at += length;
            } else if (tag == TRANSITION) {
                transition = (int) wire.readVarint();
            } else {
                wire.skip(tag);
            }
        }
    }

    boolean hasBefore() {
        return beforeAt >= 0;
    }

    boolean hasAfter() {
        return afterAt >= 0;
    }

    Row before(Relation relation) {
        return decode(relation, new Wire(bytes, beforeAt, beforeEnd));
    }

    Row after(Relation relation) {
        return decode(relation, new Wire(bytes, afterAt, afterEnd));
    }

    private static Row decode(Relation relation, Wire wire) {
        Object[] values = new Object[relation.names.length];
        int count = 0;
        while (wire.hasMore()) {
            int tag = wire.readTag();
            if (tag != VALUES) {
                wire.skip(tag);
                continue;
            }
            int length = wire.readLength();
            int end = wire.at + length;
            if (count < values.length) {
                values[count] = value(relation, count, wire, end);
            }
            wire.at = end;
            count++;
        }
        if (count != values.length) {
            throw new WalcastException.Protocol(
                    relation.table() + ": " + count + " values for " + values.length + " columns");
        }
        return new Row(relation, values);
    }

    private static Object value(Relation relation, int column, Wire wire, int end) {
        while (wire.at < end) {
            int tag = wire.readTag();
            if (tag == TEXT) {
                return relation.text(column, wire.readText());
            } else if (tag == INT) {
                return wire.readZigzag();
            } else if (tag == FLOAT) {
                return wire.readDouble();
            } else if (tag == BOOL) {
                return wire.readVarint() != 0;
            } else if (tag == BYTES || tag == RAW_TEXT) {
                return wire.readBytes();
            } else if (tag == MISSING) {
                return missing((int) wire.readVarint());
            }
            wire.skip(tag);
        }
        throw new WalcastException.Protocol(relation.table() + "." + relation.names[column]
                + ": a value has a kind that this version does not know");
    }

    private static Object missing(int number) {
        switch (number) {
            case Missing.MISSING_NULL_VALUE:
                return null;
            case Missing.MISSING_UNCHANGED_VALUE:
                return Unchanged.UNCHANGED;
            case Missing.MISSING_ABSENT_VALUE:
                return Row.ABSENT;
            default:
                throw new WalcastException.Protocol(
                        "a value is missing for reason " + number + ", which this version does not know");
        }
    }

    /** Columns whose values differ; null if the old row is not known whole. */
    List<String> changed(Relation relation) {
        List<Wire> old = values(beforeAt, beforeEnd);
        List<Wire> now = values(afterAt, afterEnd);
        if (old.size() != relation.names.length || now.size() != relation.names.length) {
            throw new WalcastException.Protocol(relation.table() + ": a row does not fit its columns");
        }
        List<String> changed = new ArrayList<>();
        for (int column = 0; column < relation.names.length; column++) {
            if (isMissing(now.get(column), Missing.MISSING_UNCHANGED_VALUE)) {
                continue;
            }
            if (isMissing(old.get(column), Missing.MISSING_ABSENT_VALUE)) {
                return null;
            }
            Wire before = old.get(column);
            Wire after = now.get(column);
            if (!Arrays.equals(bytes, before.at, before.end, bytes, after.at, after.end)) {
                changed.add(relation.names[column]);
            }
        }
        return changed;
    }

    private List<Wire> values(int at, int end) {
        Wire wire = new Wire(bytes, at, end);
        List<Wire> values = new ArrayList<>();
        while (wire.hasMore()) {
            int tag = wire.readTag();
            if (tag == VALUES) {
                values.add(wire.readPart());
            } else {
                wire.skip(tag);
            }
        }
        return values;
    }

    private boolean isMissing(Wire value, int reason) {
        Wire wire = new Wire(bytes, value.at, value.end);
        return wire.hasMore() && wire.readTag() == MISSING && wire.readVarint() == reason;
    }
}

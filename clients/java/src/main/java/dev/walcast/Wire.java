package dev.walcast;

import java.nio.charset.StandardCharsets;

/**
 * A cursor over protobuf's encoding, for the two messages that there are millions of: Change and Row. Generated classes would
 * make nine objects of a change with five columns before the first value is looked at.
 */
final class Wire {
    private static final int VARINT = 0;
    private static final int FIXED64 = 1;
    private static final int BYTES = 2;
    private static final int FIXED32 = 5;

    final byte[] bytes;
    int at;
    final int end;

    Wire(byte[] bytes, int at, int end) {
        this.bytes = bytes;
        this.at = at;
        this.end = end;
    }

    static int varint(int field) {
        return field << 3 | VARINT;
    }

    static int fixed64(int field) {
        return field << 3 | FIXED64;
    }

    static int bytes(int field) {
        return field << 3 | BYTES;
    }

    private static WalcastException.Protocol garbled() {
        return new WalcastException.Protocol("a response is garbled");
    }

    boolean hasMore() {
        return at < end;
    }

    long readVarint() {
        long value = 0;
        for (int shift = 0; shift < 64; shift += 7) {
            if (at >= end) {
                throw garbled();
            }
            byte next = bytes[at++];
            value |= (long) (next & 0x7f) << shift;
            if (next >= 0) {
                return value;
            }
        }
        throw garbled();
    }

    int readTag() {
        return (int) readVarint();
    }

    long readZigzag() {
        long value = readVarint();
        return value >>> 1 ^ -(value & 1);
    }

    double readDouble() {
        if (end - at < 8) {
            throw garbled();
        }
        long bits = 0;
        for (int shift = 0; shift < 64; shift += 8) {
            bits |= (bytes[at++] & 0xffL) << shift;
        }
        return Double.longBitsToDouble(bits);
    }

    /** The length of what follows, which is all there. */
    int readLength() {
        long length = readVarint();
        if (length < 0 || length > end - at) {
            throw garbled();
        }
        return (int) length;
    }

    byte[] readBytes() {
        int length = readLength();
        byte[] value = java.util.Arrays.copyOfRange(bytes, at, at + length);
        at += length;
        return value;
    }

    String readText() {
        int length = readLength();
        String value = new String(bytes, at, length, StandardCharsets.UTF_8);
        at += length;
        return value;
    }

    /** The next part as a cursor of its own. */
    Wire readPart() {
        int length = readLength();
        Wire part = new Wire(bytes, at, at + length);
        at += length;
        return part;
    }

    void skip(int tag) {
        int size = switch (tag & 7) {
            case VARINT -> {
                readVarint();
                yield 0;
            }
            case FIXED64 -> 8;
            case BYTES -> readLength();
            case FIXED32 -> 4;
            default -> throw garbled();
        };
        if (size > end - at) {
            throw garbled();
        }
        at += size;
    }
}

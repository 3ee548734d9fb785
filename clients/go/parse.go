package walcast

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Decoder makes a Go value of the text that PostgreSQL prints: ISO dates, UTC, IntervalStyle postgres.
type Decoder func(text string) (any, error)

func digits(text string) (int, bool) {
	if text == "" {
		return 0, false
	}
	value := 0
	for i := 0; i < len(text); i++ {
		digit := text[i] - '0'
		if digit > 9 {
			return 0, false
		}
		value = value*10 + int(digit)
	}
	return value, true
}

// parseDate reads YYYY-MM-DD: years 1 to 9999.
func parseDate(text string) (Date, bool) {
	if len(text) != 10 || text[4] != '-' || text[7] != '-' {
		return Date{}, false
	}
	year, a := digits(text[:4])
	month, b := digits(text[5:7])
	day, c := digits(text[8:])
	return Date{year, time.Month(month), day}, a && b && c && year > 0 && month >= 1 && month <= 12 && day >= 1 && day <= 31
}

// parseClock reads HH:MM:SS[.ffffff] up to 23:59:59.999999, and gives what follows.
func parseClock(text string) (clock TimeOfDay, rest string, ok bool) {
	if len(text) < 8 || text[2] != ':' || text[5] != ':' {
		return TimeOfDay{}, "", false
	}
	hour, a := digits(text[:2])
	minute, b := digits(text[3:5])
	second, c := digits(text[6:8])
	rest = text[8:]
	micros := 0
	if rest != "" && rest[0] == '.' {
		length := 1
		for length < len(rest) && rest[length]-'0' <= 9 {
			length++
		}
		if length == 1 || length > 7 {
			return TimeOfDay{}, "", false
		}
		micros, _ = digits(rest[1:length])
		for n := length; n < 7; n++ {
			micros *= 10
		}
		rest = rest[length:]
	}
	return TimeOfDay{hour, minute, second, micros}, rest, a && b && c && hour < 24 && minute < 60 && second < 60
}

// parseOffset reads [+-]HH[:MM[:SS]] in seconds.
func parseOffset(text string) (int, bool) {
	if len(text) < 3 || (text[0] != '+' && text[0] != '-') {
		return 0, false
	}
	seconds, scale := 0, 3600
	for part := text[1:]; ; part = part[3:] {
		value, ok := digits(part[:2])
		if !ok || scale == 0 {
			return 0, false
		}
		seconds += value * scale
		scale /= 60
		if len(part) == 2 {
			break
		}
		if len(part) < 5 || part[2] != ':' {
			return 0, false
		}
	}
	if text[0] == '-' {
		seconds = -seconds
	}
	return seconds, true
}

func parseTimestamp(text string) (at time.Time, rest string, ok bool) {
	if len(text) < 19 || text[10] != ' ' {
		return time.Time{}, "", false
	}
	date, a := parseDate(text[:10])
	clock, rest, b := parseClock(text[11:])
	if !a || !b {
		return time.Time{}, "", false
	}
	return time.Date(date.Year, date.Month, date.Day, clock.Hour, clock.Minute, clock.Second, clock.Microsecond*1000, time.UTC), rest, true
}

func decodeDate(text string) (any, error) {
	if date, ok := parseDate(text); ok {
		return date, nil
	}
	return Unrepresentable{"date", text}, nil
}

func decodeTime(text string) (any, error) {
	if clock, rest, ok := parseClock(text); ok && rest == "" {
		return clock, nil
	}
	return Unrepresentable{"time", text}, nil
}

func decodeTimeTZ(text string) (any, error) {
	if clock, rest, ok := parseClock(text); ok {
		if offset, ok := parseOffset(rest); ok {
			return ZonedTimeOfDay{clock, offset}, nil
		}
	}
	return Unrepresentable{"timetz", text}, nil
}

func decodeTimestamp(text string) (any, error) {
	if at, rest, ok := parseTimestamp(text); ok && rest == "" {
		return at, nil
	}
	return Unrepresentable{"timestamp", text}, nil
}

func decodeTimestampTZ(text string) (any, error) {
	if at, rest, ok := parseTimestamp(text); ok {
		if rest == "+00" {
			return at, nil
		}
		if offset, ok := parseOffset(rest); ok {
			return at.Add(-time.Duration(offset) * time.Second), nil
		}
	}
	return Unrepresentable{"timestamptz", text}, nil
}

// decodeInterval reads IntervalStyle postgres: "-1 years -2 mons +3 days -04:05:06.7".
func decodeInterval(text string) (any, error) {
	if text == "infinity" || text == "-infinity" {
		return Unrepresentable{"interval", text}, nil
	}
	bad := func() (any, error) { return nil, fmt.Errorf("not an interval") }
	var interval Interval
	words := strings.Fields(text)
	if len(words) == 0 {
		return bad()
	}
	for i := 0; i < len(words); i++ {
		if strings.Contains(words[i], ":") {
			micros, ok := parseHours(words[i])
			if !ok || i != len(words)-1 {
				return bad()
			}
			interval.Microseconds = micros
			break
		}
		amount, err := strconv.ParseInt(words[i], 10, 64)
		if i++; err != nil || i == len(words) {
			return bad()
		}
		switch strings.TrimSuffix(words[i], "s") {
		case "year":
			interval.Months += 12 * amount
		case "mon":
			interval.Months += amount
		case "day":
			interval.Days += amount
		default:
			return bad()
		}
	}
	return interval, nil
}

// parseHours reads [+-]HOURS:MM:SS[.ffffff] in microseconds.
func parseHours(text string) (int64, bool) {
	sign := int64(1)
	if text[0] == '-' {
		sign = -1
	}
	hours, rest, found := strings.Cut(strings.TrimLeft(text, "+-"), ":")
	h, ok := digits(hours)
	clock, rest, tail := parseClock("00:" + rest)
	if !found || !ok || !tail || rest != "" {
		return 0, false
	}
	return sign * (int64(h)*3_600_000_000 + clock.SinceMidnight().Microseconds()), true
}

func decodeUUID(text string) (any, error) {
	var uuid UUID
	if len(text) != 36 || text[8] != '-' || text[13] != '-' || text[18] != '-' || text[23] != '-' {
		return nil, fmt.Errorf("not a UUID")
	}
	compact := text[:8] + text[9:13] + text[14:18] + text[19:23] + text[24:]
	if _, err := hex.Decode(uuid[:], []byte(compact)); err != nil {
		return nil, err
	}
	return uuid, nil
}

// decodeJSON keeps numbers as [json.Number], which is exact.
func decodeJSON(text string) (any, error) {
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); err != io.EOF {
		return nil, fmt.Errorf("more than one JSON value")
	}
	return value, nil
}

func decodeText(text string) (any, error) { return text, nil }

func decodeNumeric(text string) (any, error) { return Numeric(text), nil }

func decodeInt(text string) (any, error) { return strconv.ParseInt(text, 10, 64) }

func decodeFloat(text string) (any, error) { return strconv.ParseFloat(text, 64) }

func decodeBool(text string) (any, error) {
	if text != "t" && text != "f" {
		return nil, fmt.Errorf("not a bool")
	}
	return text == "t", nil
}

func decodeBytea(text string) (any, error) {
	if !strings.HasPrefix(text, `\x`) {
		return nil, fmt.Errorf("not a bytea in hexadecimal")
	}
	return hex.DecodeString(text[2:])
}

// ArrayOf gives a decoder for arrays whose elements another decodes: nested []any, NULL as nil, lower bounds dropped.
func ArrayOf(element Decoder) Decoder { return arrayOf(element, ',') }

func arrayOf(element Decoder, delimiter byte) Decoder {
	return func(text string) (any, error) {
		if strings.HasPrefix(text, "[") {
			_, text, _ = strings.Cut(text, "=")
		}
		parser := arrayParser{text: text, delimiter: delimiter, element: element}
		array, err := parser.array()
		if err == nil && parser.at != len(text) {
			err = errNotAnArray
		}
		if err != nil {
			return nil, err
		}
		return array, nil
	}
}

var errNotAnArray = fmt.Errorf("not an array")

type arrayParser struct {
	text      string
	at        int
	delimiter byte
	element   Decoder
}

func (p *arrayParser) peek() byte {
	if p.at < len(p.text) {
		return p.text[p.at]
	}
	return 0
}

func (p *arrayParser) array() ([]any, error) {
	if p.peek() != '{' {
		return nil, errNotAnArray
	}
	p.at++
	array := []any{}
	if p.peek() == '}' {
		p.at++
		return array, nil
	}
	for {
		value, err := p.value()
		if err != nil {
			return nil, err
		}
		array = append(array, value)
		next := p.peek()
		p.at++
		switch {
		case next == '}':
			return array, nil
		case next != p.delimiter || p.at > len(p.text):
			return nil, errNotAnArray
		}
	}
}

func (p *arrayParser) value() (any, error) {
	switch p.peek() {
	case '{':
		return p.array()
	case '"':
		text, size, ok := unquote(p.text[p.at:])
		if !ok {
			return nil, errNotAnArray
		}
		p.at += size
		return p.element(text)
	}
	start := p.at
	for p.at < len(p.text) && p.text[p.at] != p.delimiter && !strings.ContainsRune(`{}"`, rune(p.text[p.at])) {
		p.at++
	}
	if p.at == start {
		return nil, errNotAnArray
	}
	if plain := p.text[start:p.at]; plain != "NULL" {
		return p.element(plain)
	}
	return nil, nil
}

// unquote reads a quoted text with backslashes and doubled quotes, and gives how many bytes it took.
func unquote(text string) (string, int, bool) {
	var out strings.Builder
	for i := 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			if i++; i < len(text) {
				out.WriteByte(text[i])
			}
		case '"':
			if i+1 == len(text) || text[i+1] != '"' {
				return out.String(), i + 1, true
			}
			i++
			out.WriteByte('"')
		default:
			out.WriteByte(text[i])
		}
	}
	return "", 0, false
}

// RangeOf gives a decoder for ranges whose bounds another decodes.
func RangeOf(element Decoder) Decoder {
	return func(text string) (any, error) {
		value, rest, err := parseRange(text, element)
		if err == nil && rest != "" {
			err = errNotARange
		}
		if err != nil {
			return nil, err
		}
		return value, nil
	}
}

// MultirangeOf gives a decoder for multiranges: a []Range.
func MultirangeOf(element Decoder) Decoder {
	return func(text string) (any, error) {
		if len(text) < 2 || text[0] != '{' || text[len(text)-1] != '}' {
			return nil, errNotARange
		}
		ranges := []Range{}
		for rest := text[1 : len(text)-1]; rest != ""; rest = strings.TrimPrefix(rest, ",") {
			value, after, err := parseRange(rest, element)
			if err != nil {
				return nil, err
			}
			ranges = append(ranges, value)
			rest = after
		}
		return ranges, nil
	}
}

var errNotARange = fmt.Errorf("not a range")

func parseRange(text string, element Decoder) (Range, string, error) {
	if text == "empty" {
		return Range{Empty: true}, "", nil
	}
	if text == "" || (text[0] != '[' && text[0] != '(') {
		return Range{}, "", errNotARange
	}
	value := Range{LowerInclusive: text[0] == '['}
	rest := text[1:]
	for bound := range 2 {
		var plain string
		quoted := strings.HasPrefix(rest, `"`)
		if quoted {
			unquoted, size, ok := unquote(rest)
			if !ok {
				return Range{}, "", errNotARange
			}
			plain, rest = unquoted, rest[size:]
		} else {
			end := strings.IndexAny(rest, ",])")
			if end < 0 {
				return Range{}, "", errNotARange
			}
			plain, rest = rest[:end], rest[end:]
		}
		if rest == "" || (bound == 0) != (rest[0] == ',') {
			return Range{}, "", errNotARange
		}
		if quoted || plain != "" {
			decoded, err := element(plain)
			if err != nil {
				return Range{}, "", err
			}
			if bound == 0 {
				value.Lower = decoded
			} else {
				value.Upper = decoded
			}
		}
		value.UpperInclusive = rest[0] == ']'
		rest = rest[1:]
	}
	return value, rest, nil
}

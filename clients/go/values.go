package walcast

import (
	"encoding/hex"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
)

type unchanged struct{}

func (unchanged) String() string { return "UNCHANGED" }

// Unchanged is a TOASTed value that the update did not touch and PostgreSQL did not send: it is what it was. Never nil,
// and equal to nothing but itself.
var Unchanged any = unchanged{}

// IsUnchanged says whether a value of a row is [Unchanged].
func IsUnchanged(value any) bool {
	_, is := value.(unchanged)
	return is
}

// Unrepresentable is a valid PostgreSQL value that the Go type cannot hold, as PostgreSQL prints it: infinite dates,
// years before 1 or after 9999 (which [time.Time] cannot write as RFC 3339), and 24:00:00.
type Unrepresentable struct {
	// Type is the column's type.
	Type string
	// Text is the value as PostgreSQL prints it.
	Text string
}

// IsInfinite says whether it is infinity or -infinity.
func (u Unrepresentable) IsInfinite() bool { return u.Text == "infinity" || u.Text == "-infinity" }

// IsBC says whether it is a date before the year 1.
func (u Unrepresentable) IsBC() bool { return strings.HasSuffix(u.Text, " BC") }

func (u Unrepresentable) String() string { return u.Text }

// Numeric is a decimal of any precision, NaN and infinities included, as PostgreSQL prints it: without exponent, its
// scale kept.
type Numeric string

// Rat gives its exact value; false for NaN and infinities.
func (n Numeric) Rat() (*big.Rat, bool) { return new(big.Rat).SetString(string(n)) }

// IsNaN says whether it is PostgreSQL's NaN.
func (n Numeric) IsNaN() bool { return n == "NaN" }

// Float64 gives the nearest float.
func (n Numeric) Float64() float64 {
	value, _ := strconv.ParseFloat(string(n), 64) // an error is out of range, where the value is an infinity
	return value
}

// Date is a day without a time zone.
type Date struct {
	Year  int
	Month time.Month
	Day   int
}

// In gives its midnight in a time zone.
func (d Date) In(zone *time.Location) time.Time {
	return time.Date(d.Year, d.Month, d.Day, 0, 0, 0, 0, zone)
}

func (d Date) String() string { return fmt.Sprintf("%04d-%02d-%02d", d.Year, int(d.Month), d.Day) }

// TimeOfDay is PostgreSQL's time: what a clock shows.
type TimeOfDay struct {
	Hour, Minute, Second, Microsecond int
}

func (t TimeOfDay) String() string {
	text := fmt.Sprintf("%02d:%02d:%02d", t.Hour, t.Minute, t.Second)
	if t.Microsecond != 0 {
		text += fmt.Sprintf(".%06d", t.Microsecond)
	}
	return text
}

// SinceMidnight is the time between midnight and t.
func (t TimeOfDay) SinceMidnight() time.Duration {
	return time.Duration((t.Hour*60+t.Minute)*60+t.Second)*time.Second + time.Duration(t.Microsecond)*time.Microsecond
}

// ZonedTimeOfDay is PostgreSQL's timetz.
type ZonedTimeOfDay struct {
	TimeOfDay
	// Offset is in seconds east of UTC.
	Offset int
}

func (t ZonedTimeOfDay) String() string {
	sign, offset := '+', t.Offset
	if offset < 0 {
		sign, offset = '-', -offset
	}
	text := fmt.Sprintf("%s%c%02d:%02d", t.TimeOfDay, sign, offset/3600, offset/60%60)
	if offset%60 != 0 {
		text += fmt.Sprintf(":%02d", offset%60)
	}
	return text
}

// Interval is PostgreSQL's interval. A month has no fixed number of days, nor has a day a fixed number of hours.
type Interval struct {
	Months, Days, Microseconds int64
}

// Duration gives it as a duration, a day being 24 hours; false if there are months.
func (i Interval) Duration() (time.Duration, bool) {
	return time.Duration(i.Days)*24*time.Hour + time.Duration(i.Microseconds)*time.Microsecond, i.Months == 0
}

// UUID is a universally unique identifier.
type UUID [16]byte

func (u UUID) String() string {
	var text [36]byte
	hex.Encode(text[:8], u[:4])
	hex.Encode(text[9:13], u[4:6])
	hex.Encode(text[14:18], u[6:8])
	hex.Encode(text[19:23], u[8:10])
	hex.Encode(text[24:], u[10:])
	text[8], text[13], text[18], text[23] = '-', '-', '-', '-'
	return string(text[:])
}

// MarshalText writes it as PostgreSQL does.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// Range is a range. A nil bound is unbounded; of an empty range both are nil.
type Range struct {
	Lower, Upper                   any
	LowerInclusive, UpperInclusive bool
	Empty                          bool
}

func (r Range) String() string {
	if r.Empty {
		return "empty"
	}
	text := []byte{'('}
	if r.LowerInclusive {
		text[0] = '['
	}
	if r.Lower != nil {
		text = fmt.Append(text, r.Lower)
	}
	text = append(text, ',')
	if r.Upper != nil {
		text = fmt.Append(text, r.Upper)
	}
	if r.UpperInclusive {
		return string(append(text, ']'))
	}
	return string(append(text, ')'))
}

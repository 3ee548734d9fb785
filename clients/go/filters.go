package walcast

import (
	"fmt"
	"math"
	"reflect"
	"sort"
	"strconv"
	"strings"
	"time"
)

// Rule is what is selected of the tables that match, instead of the subscription's Columns, Where and Operations.
type Rule struct {
	// Tables is one glob over "schema.table".
	Tables     string
	Columns    []string
	Where      string
	Operations []Operation
}

// Identifier quotes a column name for a Where, as PostgreSQL does.
func Identifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func quoted(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }

// Literal writes a value for a Where, quoted as PostgreSQL does: nil, booleans, integers, floats, text, [time.Time] and
// this package's types.
func Literal(value any) (string, error) {
	switch value := value.(type) {
	case nil:
		return "NULL", nil
	case string:
		return quoted(value), nil
	case bool:
		return strings.ToUpper(strconv.FormatBool(value)), nil
	case Numeric:
		if strings.Trim(string(value), "-0123456789") == "" {
			return string(value), nil
		}
		return quoted(string(value)), nil
	case time.Time:
		return quoted(value.Format("2006-01-02 15:04:05.999999-07:00")), nil
	case Date, TimeOfDay, ZonedTimeOfDay, UUID, Unrepresentable:
		return quoted(fmt.Sprint(value)), nil
	}
	switch number := reflect.ValueOf(value); number.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return strconv.FormatInt(number.Int(), 10), nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.FormatUint(number.Uint(), 10), nil
	case reflect.Float32, reflect.Float64:
		float := number.Float()
		text := strconv.FormatFloat(float, 'g', -1, number.Type().Bits())
		if math.IsNaN(float) || math.IsInf(float, 0) {
			return quoted(strings.Replace(strings.TrimPrefix(text, "+"), "Inf", "Infinity", 1)), nil
		}
		return text, nil
	case reflect.String:
		return quoted(number.String()), nil
	}
	return "", fmt.Errorf("walcast: no literal for %T", value)
}

// Where writes the equality of columns as a Where: a slice is IN, nil is IS NULL, and all of them hold together.
func Where(columns map[string]any) (string, error) {
	names := make([]string, 0, len(columns))
	for name := range columns {
		names = append(names, name)
	}
	sort.Strings(names)
	terms := make([]string, 0, len(names))
	for _, name := range names {
		value, column := columns[name], Identifier(name)
		if value == nil {
			terms = append(terms, column+" IS NULL")
			continue
		}
		if list := reflect.ValueOf(value); list.Kind() == reflect.Slice {
			var literals []string
			for i := range list.Len() {
				text, err := Literal(list.Index(i).Interface())
				if err != nil {
					return "", err
				}
				literals = append(literals, text)
			}
			if literals == nil {
				return "", fmt.Errorf("walcast: %s: IN needs at least one value", name)
			}
			terms = append(terms, column+" IN ("+strings.Join(literals, ", ")+")")
			continue
		}
		text, err := Literal(value)
		if err != nil {
			return "", err
		}
		terms = append(terms, column+" = "+text)
	}
	return strings.Join(terms, " AND "), nil
}

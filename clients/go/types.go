package walcast

import (
	"encoding/json"
	"strings"
)

// Types whose values arrive as such rather than as text, with the decoders for their elements in arrays.
var nativeTypes = map[string]Decoder{
	"bool": decodeBool, "int2": decodeInt, "int4": decodeInt, "int8": decodeInt, "oid": decodeInt,
	"float4": decodeFloat, "float8": decodeFloat, "bytea": decodeBytea,
}

var textualTypes = map[string]Decoder{
	"numeric": decodeNumeric, "date": decodeDate, "time": decodeTime, "timetz": decodeTimeTZ,
	"timestamp": decodeTimestamp, "timestamptz": decodeTimestampTZ, "interval": decodeInterval, "uuid": decodeUUID,
	"json": decodeJSON, "jsonb": decodeJSON,
}

var rangeTypes = map[string]Decoder{
	"int4range": decodeInt, "int8range": decodeInt, "numrange": decodeNumeric, "daterange": decodeDate,
	"tsrange": decodeTimestamp, "tstzrange": decodeTimestampTZ,
}

// Text types of pg_catalog that have arrays.
const plainTypes = `text varchar bpchar name char xml inet cidr macaddr macaddr8 bit varbit money point lseg path polygon
	line circle tsvector tsquery pg_lsn pg_snapshot txid_snapshot jsonpath xid xid8 cid tid refcursor regclass regtype
	regproc regprocedure regoper regoperator regrole regnamespace regconfig regdictionary regcollation aclitem`

// decodersOf gives the decoders of text by type name; a type without one is text.
func decodersOf(jsonText bool, extra map[string]Decoder) map[string]Decoder {
	table := map[string]Decoder{}
	for name, decode := range nativeTypes {
		table["_"+name] = ArrayOf(decode)
	}
	for name, decode := range textualTypes {
		if jsonText && strings.HasPrefix(name, "json") {
			decode = decodeRawJSON
		}
		table[name] = decode
		table["_"+name] = ArrayOf(decode)
	}
	for name, element := range rangeTypes {
		multi := strings.Replace(name, "range", "multirange", 1)
		table[name] = RangeOf(element)
		table[multi] = MultirangeOf(element)
		table["_"+name] = ArrayOf(table[name])
		table["_"+multi] = ArrayOf(table[multi])
	}
	for _, name := range strings.Fields(plainTypes) {
		table["_"+name] = ArrayOf(decodeText)
	}
	table["_box"] = arrayOf(decodeText, ';')
	for name, decode := range extra {
		table[name] = decode
	}
	return table
}

func decodeRawJSON(text string) (any, error) { return json.RawMessage(text), nil }

import * as parse from "./parse.js";
import type { Decoder } from "./parse.js";

/** Types whose values arrive as such rather than as text, with the decoders for their elements in arrays. */
const NATIVE: Record<string, Decoder> = {
  bool: parse.bool,
  int2: parse.integer,
  int4: parse.integer,
  int8: BigInt,
  oid: parse.integer,
  float4: parse.float,
  float8: parse.float,
  bytea: parse.bytea,
};

const RANGES: Record<string, Decoder> = {
  int4range: parse.integer,
  int8range: BigInt,
  numrange: parse.plain,
  daterange: parse.date,
  tsrange: parse.timestamp,
  tstzrange: parse.timestamptz,
};

/** Text types of pg_catalog that have arrays. */
const TEXTS =
  "text varchar bpchar name char xml inet cidr macaddr macaddr8 bit varbit money point lseg path polygon line circle " +
  "tsvector tsquery pg_lsn pg_snapshot txid_snapshot jsonpath xid xid8 cid tid refcursor regclass regtype regproc " +
  "regprocedure regoper regoperator regrole regnamespace regconfig regdictionary regcollation aclitem numeric";

/** Decoders of text by type name; a type without one is text. */
export function decodersOf(jsonAs: "parsed" | "text", extra: Readonly<Record<string, Decoder>>): Map<string, Decoder> {
  const json: Decoder = jsonAs === "text" ? parse.plain : JSON.parse;
  const table = new Map<string, Decoder>();
  const textual: Record<string, Decoder> = {
    date: parse.date,
    time: parse.time,
    timetz: parse.timetz,
    timestamp: parse.timestamp,
    timestamptz: parse.timestamptz,
    interval: parse.interval,
    uuid: parse.uuid,
    json,
    jsonb: json,
  };
  for (const [name, decode] of Object.entries(NATIVE)) table.set(`_${name}`, parse.arrayOf(decode));
  for (const [name, decode] of Object.entries(textual)) {
    table.set(name, decode);
    table.set(`_${name}`, parse.arrayOf(decode));
  }
  for (const [name, element] of Object.entries(RANGES)) {
    const multi = name.replace("range", "multirange");
    const range = parse.rangeOf(element);
    const multirange = parse.multirangeOf(element);
    table.set(name, range).set(multi, multirange);
    table.set(`_${name}`, parse.arrayOf(range)).set(`_${multi}`, parse.arrayOf(multirange));
  }
  for (const name of TEXTS.split(" ")) table.set(`_${name}`, parse.arrayOf(parse.plain));
  table.set("_box", parse.arrayOf(parse.plain, ";"));
  for (const [name, decode] of Object.entries(extra)) table.set(name, decode);
  return table;
}

import { create } from "@bufbuild/protobuf";
import { Operation as OperationNumber } from "./gen/walcast/v1/event_pb.js";
import { type Filter, FilterSchema } from "./gen/walcast/v1/walcast_pb.js";
import type { Operation } from "./model.js";
import type { Selection } from "./options.js";
import { PlainDate, PlainTime, Timestamp, Unrepresentable } from "./values.js";

const NUMBERS: Readonly<Record<string, OperationNumber>> = {
  insert: OperationNumber.INSERT,
  update: OperationNumber.UPDATE,
  delete: OperationNumber.DELETE,
  truncate: OperationNumber.TRUNCATE,
  read: OperationNumber.READ,
};

function several(names: string | readonly string[] | undefined): string[] {
  return typeof names === "string" ? [names] : [...(names ?? [])];
}

function numbers(operations: readonly Operation[] | undefined): OperationNumber[] {
  return (operations ?? []).map((operation) => {
    const number = NUMBERS[operation];
    if (number === undefined) throw new RangeError(`${operation} is no operation`);
    return number;
  });
}

/** The request's filter; undefined if nothing was said, which selects everything. */
export function filterMessage(selection: Selection): Filter | undefined {
  const filter = create(FilterSchema, {
    tables: several(selection.tables),
    excludeTables: several(selection.excludeTables),
    operations: numbers(selection.operations),
    columns: several(selection.columns),
    where: selection.where ?? "",
    messagePrefixes: several(selection.messages),
    origins: several(selection.origins),
    rules: (selection.rules ?? []).map(({ tables, columns, where, operations }) => ({
      tables,
      columns: [...(columns ?? [])],
      where: where ?? "",
      operations: numbers(operations),
    })),
  });
  const said = Object.values(filter).some((value) => Array.isArray(value) && value.length > 0) || filter.where !== "";
  return said ? filter : undefined;
}

/** A column name for a `where`, quoted as PostgreSQL does. */
export function identifier(name: string): string {
  return `"${name.replaceAll('"', '""')}"`;
}

function quoted(text: string): string {
  return `'${text.replaceAll("'", "''")}'`;
}

/** What `literal` can write. */
export type Literal = null | boolean | number | bigint | string | Date | PlainDate | PlainTime | Timestamp | Unrepresentable;

/** A value for a `where`, quoted as PostgreSQL does. */
export function literal(value: Literal): string {
  if (value === null) return "NULL";
  if (typeof value === "boolean") return value ? "TRUE" : "FALSE";
  if (typeof value === "bigint" || (typeof value === "number" && Number.isFinite(value))) return String(value);
  if (value instanceof Date) return quoted(value.toISOString());
  return quoted(String(value));
}

/** Equality of columns as a `where`: an array is IN, null is IS NULL, and all of them hold together. */
export function where(columns: Readonly<Record<string, Literal | readonly Literal[]>>): string {
  return Object.entries(columns)
    .map(([name, value]) => {
      if (value === null) return `${identifier(name)} IS NULL`;
      if (!(value instanceof Array)) return `${identifier(name)} = ${literal(value)}`;
      if (value.length === 0) throw new RangeError(`${name}: IN needs at least one value`);
      return `${identifier(name)} IN (${value.map(literal).join(", ")})`;
    })
    .join(" AND ");
}

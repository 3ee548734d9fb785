/** The generated messages, for those who need the protocol itself. */
export * from "./gen/walcast/v1/event_pb.js";
export * from "./gen/walcast/v1/walcast_pb.js";

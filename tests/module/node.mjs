// Runs a scenario in Node: node node.mjs '{"scenario":"cut","url":"ws://…",…}', with the WebSocket of a package if `ws` names it.

import { scenarios } from "./scenarios.mjs";
import { Room } from "../../static/wscast.js";

const order = JSON.parse(process.argv[2]);
if (order.ws) order.options.WebSocket = (await import(order.ws)).WebSocket;
const report = await scenarios[order.scenario](Room, order);
console.log(JSON.stringify(report));
// Nothing keeps it alive now, but connections that are half-open: Node's own WebSocket waits for the end of their closing
// handshake.
if (order.leavesHalfOpen) process.exit();
setTimeout(() => {
  console.error("something keeps Node alive");
  process.exit(1);
}, 5000).unref();

// SPDX-License-Identifier: Apache-2.0
// Reads objects of the KEDA and Prometheus operators as a JSON list on stdin and prints, for each,
// null or what is wrong with it: node crds.mjs FOLDER_WITH_NODE_MODULES < objects.json
//
// The types are compiled from the CRDs' schemas. They pass over fields that no schema names, so what
// validation never read is an error here, as it is with kubectl's strict field validation.
import { readFileSync } from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const modules = path.join(path.resolve(process.argv[2]), "node_modules", "@kubernetes-models");
const KINDS = {
  ScaledObject: "keda/keda.sh/v1alpha1/ScaledObject.js",
  PodMonitor: "prometheus-operator/monitoring.coreos.com/v1/PodMonitor.js",
  ServiceMonitor: "prometheus-operator/monitoring.coreos.com/v1/ServiceMonitor.js",
  PrometheusRule: "prometheus-operator/monitoring.coreos.com/v1/PrometheusRule.js",
};

// The value, with a note of every part of it that is read.
function watched(value, where, read) {
  if (typeof value !== "object" || value === null) return value;
  const parts = Object.fromEntries(
    Object.entries(value).map(([key, part]) => [key, watched(part, `${where}.${key}`, read)]),
  );
  return new Proxy(Array.isArray(value) ? Object.values(parts) : parts, {
    get(target, key) {
      read.add(`${where}.${String(key)}`);
      return target[key];
    },
  });
}

function* fields(value, where) {
  if (typeof value !== "object" || value === null) return;
  for (const [key, part] of Object.entries(value)) {
    yield `${where}.${key}`;
    yield* fields(part, `${where}.${key}`);
  }
}

async function problem(object) {
  const file = KINDS[object.kind];
  if (file === undefined) return `no type for kind ${object.kind}`;
  const model = (await import(pathToFileURL(path.join(modules, file)).href))[object.kind];
  const read = new Set();
  try {
    const typed = new model(object);
    typed.spec = watched(object.spec, "spec", read); // not before: the constructor copies
    typed.validate();
  } catch (error) {
    return error.message || String(error);
  }
  const unknown = [...fields(object.spec, "spec")].filter((field) => !read.has(field));
  return unknown.length ? `unknown: ${unknown.join(", ")}` : null;
}

const found = [];
for (const object of JSON.parse(readFileSync(0, "utf8"))) found.push(await problem(object));
console.log(JSON.stringify(found));

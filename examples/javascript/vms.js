#!/usr/bin/env node
// Starts a virtual machine, says what happens to it, lists what runs and stops
// it again: all that a client of vm_concierge needs.
//
//   npm install
//   node vms.js NAME
//
// The system bus is that of DBUS_SYSTEM_BUS_ADDRESS, the messages those in
// AUBERGE_PROTO, where these are set.
import path from 'node:path';
import process from 'node:process';
import * as dbus from '@jellybrick/dbus-next';
import protobuf from 'protobufjs';

const SERVICE = 'org.chromium.VmConcierge';
const OBJECT = '/org/chromium/VmConcierge';
const OWN = 'io.github.auberge_vm.Concierge1';

const protos = await protobuf.load(path.join(
  process.env.AUBERGE_PROTO ?? '/usr/share/auberge/proto', 'concierge_service.proto'));
const message = (name) => protos.lookupType(`vm_tools.concierge.${name}`);

// call makes one method call: a protobuf goes, as bytes, and one comes back.
async function call(bus, method, [requestType, request], responseType) {
  const type = message(requestType);
  const reply = await bus.call(new dbus.Message({
    destination: SERVICE, path: OBJECT, interface: SERVICE, member: method,
    signature: 'ay', body: [Buffer.from(type.encode(type.fromObject(request)).finish())],
  }));
  return message(responseType).decode(reply.body[0]);
}

// follow calls back for each signal of ours about a VM. Those sent to this
// connection alone come without asking the bus for them; the service is asked.
async function follow(bus, heard) {
  bus.on('message', (m) => {
    const type = protos.lookup(`vm_tools.concierge.${m.member}`);
    if (m.interface === SERVICE && m.path === OBJECT && type) {
      heard(m.member, type.decode(m.body[0]));
    }
  });
  await bus.call(new dbus.Message({ destination: SERVICE, path: OBJECT, interface: OWN, member: 'Subscribe' }));
}

async function main(name) {
  const bus = dbus.systemBus();
  const stopped = Promise.withResolvers?.() ?? withResolvers();
  await follow(bus, (signal, told) => {
    console.log(`signal ${signal}: ${told.name}`);
    if (signal === 'VmStoppedSignal' && told.name === name) stopped.resolve();
  });

  const started = await call(bus, 'StartVm', ['StartVmRequest', { name }], 'StartVmResponse');
  if (!started.success) throw new Error(`${name} did not start: ${started.failureReason}`);
  console.log(`${name} runs, cid ${started.vmInfo.cid}`);

  const list = await call(bus, 'ListVms', ['ListVmsRequest', {}], 'ListVmsResponse');
  for (const vm of list.vms) console.log(`listed: ${vm.name}`);

  const end = await call(bus, 'StopVm', ['StopVmRequest', { name }], 'SuccessFailureResponse');
  if (!end.success) throw new Error(`${name} did not stop: ${end.failureReason}`);
  await stopped.promise;
  bus.disconnect();
}

// Node has this from version 22 on.
function withResolvers() {
  const d = {};
  d.promise = new Promise((resolve, reject) => Object.assign(d, { resolve, reject }));
  return d;
}

if (process.argv.length !== 3) {
  console.error('usage: vms.js NAME');
  process.exit(2);
}
try {
  await main(process.argv[2]);
} catch (error) {
  console.error(`vms.js: ${error.type ?? ''} ${error.message}`);
  process.exit(1);
}

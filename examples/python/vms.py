#!/usr/bin/python3
"""Starts a virtual machine, says what happens to it, lists what runs and stops
it again: all that a client of vm_concierge needs.

    protoc -I /usr/share/auberge/proto --python_out=. concierge_service.proto
    python3 vms.py NAME

The system bus is that of DBUS_SYSTEM_BUS_ADDRESS, where that is set.
"""

import sys

from jeepney import DBusAddress, HeaderFields, MatchRule, MessageType, new_method_call
from jeepney.io.blocking import open_dbus_connection

import concierge_service_pb2 as pb

NAME, PATH = "org.chromium.VmConcierge", "/org/chromium/VmConcierge"
SERVICE = DBusAddress(PATH, bus_name=NAME, interface=NAME)
OWN = DBusAddress(PATH, bus_name=NAME, interface="io.github.auberge_vm.Concierge1")

# A VM has up to a minute to start; where it is emulated, three.
PATIENCE = 200


class Refused(Exception):
    """The service said no, or could not."""


def ask(bus, message):
    """Sends a call and returns what comes back."""
    reply = bus.send_and_get_reply(message, timeout=PATIENCE)
    if reply.header.message_type == MessageType.error:
        raise Refused(": ".join([reply.header.fields[HeaderFields.error_name], *map(str, reply.body)]))
    return reply.body


def call(bus, method, request, response):
    """Makes one method call: a protobuf goes, as bytes, and one comes back."""
    body = ask(bus, new_method_call(SERVICE, method, "ay", (request.SerializeToString(),)))
    response.ParseFromString(body[0])
    return response


def heard(bus, queue):
    """Yields the signals about VMs that have come, and waits for more."""
    while True:
        message = bus.recv_until_filtered(queue, timeout=PATIENCE)
        member = message.header.fields[HeaderFields.member]
        # Each signal carries the message that is called like itself.
        kind = getattr(pb, member, None)
        if kind is not None:
            yield member, kind.FromString(message.body[0])


def main(name):
    bus = open_dbus_connection(bus="SYSTEM")
    # What the service tells this connection while it does other things. It
    # tells this connection alone, so the bus need not be asked for it.
    rule = MatchRule(type="signal", interface=NAME, path=PATH)
    with bus.filter(rule, bufsize=1000) as queue:
        ask(bus, new_method_call(OWN, "Subscribe"))
        run(bus, queue, name)
    bus.close()


def run(bus, queue, name):
    started = call(bus, "StartVm", pb.StartVmRequest(name=name), pb.StartVmResponse())
    if not started.success:
        raise Refused(f"{name} did not start: {started.failure_reason}")
    print(f"{name} runs, cid {started.vm_info.cid}")

    for vm in call(bus, "ListVms", pb.ListVmsRequest(), pb.ListVmsResponse()).vms:
        print(f"listed: {vm.name}")

    stopped = call(bus, "StopVm", pb.StopVmRequest(name=name), pb.SuccessFailureResponse())
    if not stopped.success:
        raise Refused(f"{name} did not stop: {stopped.failure_reason}")
    for signal, told in heard(bus, queue):
        print(f"signal {signal}: {told.name}")
        if signal == "VmStoppedSignal" and told.name == name:
            return


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: vms.py NAME")
    try:
        main(sys.argv[1])
    except (Refused, OSError) as error:
        sys.exit(f"vms.py: {error}")

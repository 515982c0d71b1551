package bus

import (
	"context"

	"github.com/godbus/dbus/v5"
)

// Call calls a method of an object and waits for the answer. The service may
// have the user asked for a password on the way, by whatever authentication
// agent the user's session has: without one it refuses at once. godbus's own
// Call has no way to say so.
func Call(ctx context.Context, conn *dbus.Conn, dest string, path dbus.ObjectPath, iface, member string, args ...any) *dbus.Call {
	msg := &dbus.Message{
		Type: dbus.TypeMethodCall, Flags: dbus.FlagAllowInteractiveAuthorization, Body: args,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(dest), dbus.FieldPath: dbus.MakeVariant(path),
			dbus.FieldInterface: dbus.MakeVariant(iface), dbus.FieldMember: dbus.MakeVariant(member),
		},
	}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return <-conn.SendWithContext(ctx, msg, make(chan *dbus.Call, 1)).Done
}

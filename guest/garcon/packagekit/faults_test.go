package packagekit

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const anID = "au;1;all;x"

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func wantError(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v, want %q", err, text)
	}
}

// install is what a fake does that can.
func install(tr *fakeTransaction, _ string, _ []any) *dbus.Error {
	tr.set("Status", statusInstall)
	tr.set("Percentage", 50)
	tr.finish(exitSuccess)
	return nil
}

// PackageKit ends in the middle of an installation, and its successor installs.
func TestDaemonDies(t *testing.T) {
	b := startBus(t)
	f := b.fake(func(tr *fakeTransaction, _ string, _ []any) *dbus.Error {
		tr.emit("Package", uint32(1), anID, "")
		tr.die <- struct{}{}
		return nil
	})
	o, r := operations(t, NewClient())
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	<-f.die
	f.conn.Close() // after the reply
	if err := r.end(t); !errors.Is(err, errDied) {
		t.Errorf("the final report is %v", err)
	}
	r.take()
	b.fake(install)
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil || r.take() != "u2:0 u2:50" {
		t.Errorf("the next installation: %v", err)
	}
}

func TestTransactionVanishes(t *testing.T) {
	startBus(t).fake(func(tr *fakeTransaction, _ string, _ []any) *dbus.Error {
		tr.emit("Destroy")
		return nil
	})
	o, r := operations(t, NewClient())
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.end(t), "dropped the transaction")
}

func TestBusEnds(t *testing.T) {
	b := startBus(t)
	b.fake(func(*fakeTransaction, string, []any) *dbus.Error { return nil })
	o, r := operations(t, NewClient())
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	b.stop()
	wantError(t, r.end(t), "system bus hung up")
	wantError(t, o.InstallPackage(within(t), anID, "u"), "dial the container's system bus")
}

func TestSilence(t *testing.T) {
	f := startBus(t).fake(func(*fakeTransaction, string, []any) *dbus.Error { return nil })
	c := NewClient()
	c.silence = 100 * time.Millisecond
	o, r := operations(t, c)
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	wantError(t, r.end(t), "has said nothing for 100ms")
	<-f.cancel
}

// One at a time, also of different kinds; then the agent stops.
func TestOneAtATime(t *testing.T) {
	f := startBus(t).fake(func(tr *fakeTransaction, method string, _ []any) *dbus.Error {
		tr.set("Status", statusDownload)
		return nil
	})
	file := filepath.Join(t.TempDir(), "a.deb")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	o, r := operations(t, NewClient())
	if err := o.InstallFile(within(t), file, "first"); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		o.InstallFile(within(t), file, "second"), o.InstallPackage(within(t), anID, "third"), o.RemoveOwner(within(t), file),
	} {
		if !errors.Is(err, ErrBusy) {
			t.Errorf("another operation: %v", err)
		}
	}
	o.Close()
	if err := r.end(t); !errors.Is(err, errStopping) {
		t.Errorf("the final report is %v", err)
	}
	<-f.cancel
	if err := o.InstallPackage(within(t), anID, ""); !errors.Is(err, errStopping) {
		t.Errorf("an operation at the end: %v", err)
	}
}

// What PackageKit refuses at once is the answer, and the next one may try.
func TestRefused(t *testing.T) {
	var refused atomic.Bool
	startBus(t).fake(func(tr *fakeTransaction, method string, args []any) *dbus.Error {
		if !refused.Swap(true) {
			return dbus.NewError("org.freedesktop.PackageKit.Transaction.RefusedByPolicy", []any{"no"})
		}
		return install(tr, method, args)
	})
	o, r := operations(t, NewClient())
	wantError(t, o.InstallPackage(within(t), anID, "u"), "polkit rules do not let")
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil {
		t.Error(err)
	}
}

func TestNotInstalled(t *testing.T) {
	startBus(t)
	_, err := NewClient().Named(within(t), "bash")
	wantError(t, err, "sudo apt install packagekit")
}

// A daemon that is about to exit is asked for again.
func TestDaemonIsLeaving(t *testing.T) {
	f := startBus(t).fake(func(tr *fakeTransaction, _ string, _ []any) *dbus.Error {
		tr.emit("Package", uint32(infoInstalled), anID, "")
		tr.finish(exitSuccess)
		return nil
	})
	f.beginWith(func(n int) *dbus.Error {
		if n == 1 {
			return dbus.NewError("org.freedesktop.DBus.Error.NoReply", nil)
		}
		return nil
	})
	if id, err := NewClient().OwnerOf(within(t), "/usr/bin/au"); err != nil || id != anID {
		t.Errorf("the owner is %q, %v", id, err)
	}
}

// Somebody else on the bus cannot end an operation in PackageKit's name.
func TestForgery(t *testing.T) {
	b := startBus(t)
	intruder := b.connect()
	b.fake(func(tr *fakeTransaction, _ string, _ []any) *dbus.Error {
		for _, member := range []string{"Finished", "ErrorCode"} {
			body := []any{uint32(exitSuccess), uint32(1)}
			if member == "ErrorCode" {
				body = []any{uint32(1), "forged"}
			}
			m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldDestination: dbus.MakeVariant(string(tr.client)), dbus.FieldPath: dbus.MakeVariant(tr.path),
				dbus.FieldInterface: dbus.MakeVariant(transactionIface), dbus.FieldMember: dbus.MakeVariant(member),
				dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
			}}
			if call := intruder.Send(m, nil); call != nil && call.Err != nil {
				t.Error(call.Err)
			}
		}
		// The intruder's messages are with the bus before ours.
		if err := intruder.BusObject().Call("org.freedesktop.DBus.GetId", 0).Err; err != nil {
			t.Error(err)
		}
		tr.emit("ErrorCode", uint32(1), "genuine")
		tr.finish(2)
		return nil
	})
	o, r := operations(t, NewClient())
	if err := o.InstallPackage(within(t), anID, "u"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err == nil || err.Error() != "PackageKit: genuine" {
		t.Errorf("the final report is %v", err)
	}
}

func TestRemoveOwner(t *testing.T) {
	removed := make(chan []any, 1)
	startBus(t).fake(func(tr *fakeTransaction, method string, args []any) *dbus.Error {
		switch {
		case method == "RemovePackages":
			removed <- args
			tr.set("Status", statusRemove)
			tr.set("Percentage", 70)
		case args[0].([]string)[0] == "/usr/share/applications/au.desktop":
			tr.emit("Packages", [][]any{})
			tr.emit("Package", uint32(infoInstalled), anID, "")
		}
		tr.finish(exitSuccess)
		return nil
	})
	o, r := operations(t, NewClient())
	wantError(t, o.RemoveOwner(within(t), "/home/me/own.desktop"), "belongs to no installed package")
	if err := o.RemoveOwner(within(t), "/usr/share/applications/au.desktop"); err != nil {
		t.Fatal(err)
	}
	if err := r.end(t); err != nil || r.take() != "3:0 3:70" {
		t.Errorf("the removal: %v", err)
	}
	if args := <-removed; args[1].([]string)[0] != anID || args[2] != false || args[3] != true {
		t.Errorf("RemovePackages(%v)", args)
	}
}

func TestBadRequests(t *testing.T) {
	o, _ := operations(t, NewClient()) // nothing of this gets as far as a bus
	c := NewClient()
	for name, do := range map[string]func() error{
		"no absolute path":    func() error { return o.InstallFile(within(t), "a.deb", "") },
		"no file":             func() error { return o.InstallFile(within(t), "/no/such.deb", "") },
		"is no file":          func() error { return o.InstallFile(within(t), t.TempDir(), "") },
		"no package id":       func() error { return o.InstallPackage(within(t), "bash", "") },
		"no name of":          func() error { _, err := c.Named(within(t), "-o Foo=bar"); return err },
		"is no absolute path": func() error { _, err := c.OwnerOf(within(t), "a"); return err },
	} {
		wantError(t, do(), name)
	}
}

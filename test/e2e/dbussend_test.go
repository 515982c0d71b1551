package e2e

import (
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/dbus"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
	"github.com/auberge-vm/auberge/test/testbed"
)

// dbusSend calls a method with dbus-send, which knows neither protobuf nor
// descriptors, and reads the bytes that it prints.
func (c *client) dbusSend(method string, req, resp proto.Message) {
	c.t.Helper()
	payload, err := proto.Marshal(req)
	if err != nil {
		c.t.Fatal(err)
	}
	words := make([]string, len(payload))
	for i, b := range payload {
		words[i] = fmt.Sprint(b)
	}
	out, errs, err := c.run("/usr/bin/dbus-send", "--bus="+c.bed.Address, "--print-reply", "--reply-timeout=180000",
		"--dest="+dbus.ConciergeName, dbus.ConciergePath, dbus.ConciergeInterface+"."+method, "array:byte:"+strings.Join(words, ","))
	if err != nil {
		c.t.Fatalf("dbus-send %s: %v: %s%s", method, err, out, errs)
	}
	_, rest, ok := strings.Cut(out, "array of bytes ")
	if !ok {
		c.t.Fatalf("dbus-send %s printed %q", method, out)
	}
	var b []byte
	if text, ok := strings.CutPrefix(rest, `"`); ok {
		// Bytes that are all printable come as text.
		text, _, _ = strings.Cut(text, "\"\n")
		b = []byte(text)
	} else if b, err = hex.DecodeString(strings.Join(strings.Fields(strings.Trim(rest, "[] \n")), "")); err != nil {
		c.t.Fatalf("dbus-send %s printed %q: %v", method, out, err)
	}
	if err := proto.Unmarshal(b, resp); err != nil {
		c.t.Fatalf("dbus-send %s: %v", method, err)
	}
}

// A script with dbus-send alone gets from no disk to a stopped VM.
func TestDBusSendAlone(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	alice := b.client(testbed.Alice)
	var disk pb.CreateDiskImageResponse
	alice.dbusSend("CreateDiskImage", &pb.CreateDiskImageRequest{VmName: "termina", DiskSize: 1 << 30}, &disk)
	if disk.Status != pb.DiskImageStatus_DISK_STATUS_CREATED {
		t.Fatal(&disk)
	}
	alice.small("termina")
	var start pb.StartVmResponse
	alice.dbusSend("StartVm", &pb.StartVmRequest{Name: "termina", StartTermina: true,
		Disks: []*pb.DiskImage{{Path: disk.DiskPath, Writable: true}}}, &start)
	if !start.Success || start.VmInfo.GetPid() == 0 {
		t.Fatal(&start)
	}
	var info pb.GetVmInfoResponse
	alice.dbusSend("GetVmInfo", &pb.GetVmInfoRequest{Name: "termina"}, &info)
	if info.VmInfo.GetPid() != start.VmInfo.GetPid() {
		t.Errorf("GetVmInfo: %v", &info)
	}
	var stop pb.SuccessFailureResponse
	alice.dbusSend("StopVm", &pb.StopVmRequest{Name: "termina"}, &stop)
	if !stop.Success {
		t.Error(&stop)
	}
	b.gone()
}

package main

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/auberge-vm/auberge/cicerone"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/ciceronepb"
)

func TestVMOf(t *testing.T) {
	full := func() map[string]any {
		return map[string]any{"cid": uint32(33), "uid": uint32(1000), "label": "x", "owner": "x", "name": "vm", "pid": uint32(7),
			"type": uint32(6), "containers": true, "token": "t", "container_subnet": "100.115.128.0/28", "address": "100.115.128.2",
			"suspended": true, "passed": true, "later": "version"}
	}
	got, err := vmOf(full())
	want := cicerone.VM{CID: 33, Owner: policy.Owner{UID: 1000, Label: "x", Word: "x"}, Name: "vm", PID: 7, Type: appspb.VmType_BAGUETTE,
		Containers: true, Token: "t", ContainerSubnet: "100.115.128.0/28", Address: "100.115.128.2", Suspended: true}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, key := range []string{"cid", "uid", "name"} {
		d := full()
		delete(d, key)
		if _, err := vmOf(d); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("without %s: %v", key, err)
		}
	}
	for key := range full() {
		if key == "later" || key == "passed" {
			continue
		}
		d := full()
		d[key] = 1.5
		if _, err := vmOf(d); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s of another type: %v", key, err)
		}
	}
}

// Whoever announces something is kept waiting by nobody, not even without a
// bus; and the end waits for nobody either.
func TestEventsKeepNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		e := newEvents(slog.New(slog.NewTextHandler(&log, nil)))
		for i := range maxEvents + 10 {
			e.Emit(1, cicerone.SignalContainerShutdown, &ciceronepb.ContainerShutdownSignal{VmName: fmt.Sprint(i)})
		}
		e.close()
		e.Emit(1, cicerone.SignalContainerShutdown, &ciceronepb.ContainerShutdownSignal{})
		if e.dropped == 0 {
			t.Error("there is no bound")
		}
	})
}

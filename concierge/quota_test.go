package concierge

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/auberge-vm/auberge/policy"
	pb "github.com/auberge-vm/auberge/protos/conciergepb"
)

// limited has a bed's users limited by some rules beside no limits.
func (b *bed) limited(rules ...string) {
	b.t.Helper()
	q := &Quota{Default: NoLimits(), Where: "/etc/auberge/auberge.conf"}
	for _, text := range rules {
		r, err := ParseQuotaRule(text)
		if err != nil {
			b.t.Fatal(err)
		}
		q.Rules = append(q.Rules, r)
	}
	b.cfg.Quota = q
}

// labelled is a subject's label.
func labelled(sub policy.Subject, label string) policy.Subject {
	sub.Owner = policy.Owner{UID: sub.Owner.UID, Label: label, Word: label}
	return sub
}

// refusedBy checks that a refusal names the limit, what is used, and who can
// change it and where.
func refusedBy(t *testing.T, reason string, says ...string) {
	t.Helper()
	for _, s := range append(says, "an administrator", "/etc/auberge/auberge.conf") {
		if !strings.Contains(reason, s) {
			t.Errorf("the refusal %q does not say %q", reason, s)
		}
	}
}

// Of many starts at once as many succeed as may run, whatever their labels,
// and a VM that has gone makes room; others are not concerned.
func TestQuotaOfVMs(t *testing.T) {
	b := newBed(t)
	b.limited("64101:vms=2")
	s := b.serve()
	memory := uint64(minMemoryMiB)
	start := func(sub policy.Subject, name string) error {
		if err := s.ConfigureVm(t.Context(), sub, name, Settings{MemoryMiB: &memory}); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
		defer cancel()
		_, err := s.StartVm(ctx, sub, &pb.StartVmRequest{Name: name}, nil)
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var ran []string
	for i := range 5 {
		wg.Go(func() {
			label := fmt.Sprintf("label%d", i)
			err := start(labelled(alice, label), "x")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				ran = append(ran, label)
				return
			}
			if !errors.Is(err, ErrQuota) {
				t.Error(err)
			}
			refusedBy(t, err.Error(), "2 of at most 2", "max-vms", "uid 64101")
		})
	}
	wg.Wait()
	if len(ran) != 2 {
		t.Fatalf("%v run", ran)
	}
	// One that runs is no new one.
	if err := start(labelled(alice, ran[0]), "x"); err != nil {
		t.Error(err)
	}
	if err := start(subject(64102), "x"); err != nil {
		t.Errorf("another user: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patienceOfTests)
	defer cancel()
	if _, err := s.StopVm(ctx, labelled(alice, ran[0]), &pb.StopVmRequest{Name: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := start(alice, "y"); err != nil {
		t.Errorf("a VM has gone, and none can be started: %v", err)
	}
	// The next service counts those that it finds.
	s.Close()
	s = b.serve()
	if err := start(alice, "z"); !errors.Is(err, ErrQuota) {
		t.Errorf("after a restart: %v", err)
	}
	if err := s.StopAllVms(ctx, everyone); err != nil {
		t.Fatal(err)
	}
	b.gone()
}

func TestQuotaOfMemory(t *testing.T) {
	b := newBed(t)
	b.limited("64101:memory=300M")
	s := b.serve()
	for _, name := range []string{"a", "b"} {
		if _, err := b.small(s, name); err != nil {
			t.Fatal(err)
		}
	}
	_, err := b.small(s, "c")
	if !errors.Is(err, ErrQuota) {
		t.Fatalf("a third VM of 128 MiB: %v", err)
	}
	refusedBy(t, err.Error(), "128 MiB", "256 MiB of at most 300 MiB", "max-memory")
	// What was refused reserves nothing, and what has gone neither.
	b.stop(s, "a")
	if _, err := b.small(s, "c"); err != nil {
		t.Error(err)
	}
	q, err := s.GetQuota(t.Context(), alice)
	if err != nil || q["vms"] != uint64(2) || q["memory"] != uint64(256<<20) || q["max_memory"] != uint64(300<<20) || q["max_vms"] != nil {
		t.Errorf("%v, %v", q, err)
	}
	b.stop(s, "b")
	b.stop(s, "c")
}

// VMs that start at the same time may not all count on the same memory of the
// host.
func TestStartsReserveMemory(t *testing.T) {
	b := newBed(t)
	s := b.serve()
	_, available := hostMemory()
	// Whoever has no account has the VMs stopped, which these are too bare for.
	first, second := &vm{key: key{uid: 64101, name: "a"}}, &vm{key: key{uid: 5, name: "b"}}
	s.mu.Lock()
	s.vms[first.key], s.vms[second.key] = first, second
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		clear(s.vms)
		s.mu.Unlock()
	}()
	big := available / 3 * 2
	if err := s.reserveMemory(first, big); err != nil {
		t.Fatal(err)
	}
	if err := s.reserveMemory(second, big); err == nil || !strings.Contains(err.Error(), "VMs that are starting") {
		t.Errorf("both got two thirds of the host's memory: %v", err)
	}
	s.settleMemory(first) // it runs, and the host shows what it takes
	if err := s.reserveMemory(second, big); err != nil {
		t.Error(err)
	}
}

func TestQuotaOfDisks(t *testing.T) {
	b := newBed(t)
	b.limited("64101:disk=10M")
	s := b.serve()
	create := func(sub policy.Subject, name string, size uint64) *pb.CreateDiskImageResponse {
		t.Helper()
		r, err := s.CreateDiskImage(t.Context(), sub, &pb.CreateDiskImageRequest{VmName: name, DiskSize: size}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	const (
		created = pb.DiskImageStatus_DISK_STATUS_CREATED
		refused = pb.DiskImageStatus_DISK_STATUS_NOT_ENOUGH_SPACE
	)
	if r := create(alice, "a", 4<<20); r.Status != created {
		t.Fatalf("%v", r)
	}
	// An image counts as large as its guest sees it, also in qcow2.
	q := filepath.Join(s.storeDir(labelled(alice, "l").Owner), fileName("q")+qcow2Suffix)
	if err := os.MkdirAll(filepath.Dir(q), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(q, qcow2Header(3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r := create(labelled(alice, "other"), "b", 4<<20)
	if r.Status != refused {
		t.Fatalf("%v", r)
	}
	refusedBy(t, r.FailureReason, "4 MiB", "7 MiB of at most 10 MiB", "max-disk", "uid 64101")
	if r := create(alice, "a", 4<<20); r.Status != pb.DiskImageStatus_DISK_STATUS_EXISTS {
		t.Errorf("a disk that is there already: %v", r)
	}
	if r := create(subject(64102), "b", 64<<20); r.Status != created {
		t.Errorf("another user: %v", r)
	}
	if r := create(alice, "auto", 0); r.Status != refused {
		t.Errorf("a disk of any size where only 3 MiB are left: %v", r)
	}

	resize := func(size uint64) *pb.ResizeDiskImageResponse {
		t.Helper()
		r, err := s.ResizeDiskImage(t.Context(), alice, &pb.ResizeDiskImageRequest{VmName: "a", DiskSize: size})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rr := resize(8 << 20)
	if rr.Status != refused {
		t.Errorf("resized to 8 MiB: %v", rr)
	}
	refusedBy(t, rr.FailureReason, "8 MiB", "3 MiB of at most 10 MiB", "max-disk")
	if r := resize(7 << 20); r.Status != pb.DiskImageStatus_DISK_STATUS_RESIZED {
		t.Errorf("resized to 7 MiB: %v", r)
	}

	// Of many at once as many succeed as fit, and none more.
	b.limited("64103:disk=8M")
	s.Close()
	s = b.serve()
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := map[pb.DiskImageStatus]int{}
	for i := range 8 {
		wg.Go(func() {
			r := create(subject(64103), itoa(i), 3<<20)
			mu.Lock()
			defer mu.Unlock()
			count[r.Status]++
		})
	}
	wg.Wait()
	if count[created] != 2 || count[refused] != 6 {
		t.Errorf("%v", count)
	}
	if len(s.pledges) != 0 {
		t.Errorf("pledges are left: %v", s.pledges)
	}
	all, err := s.ListDiskUsage(t.Context(), everyone)
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	if u := all[0]; u["uid"] != uint32(64101) || u["images"] != uint32(2) || u["disk"] != uint64(10<<20) || u["user"] != nil {
		t.Errorf("%v", u)
	}
	if u := all[2]; u["uid"] != uint32(64103) || u["disk"] != uint64(6<<20) || u["max_disk"] != uint64(8<<20) {
		t.Errorf("%v", u)
	}
}

// A disk whose size is left to the service gets what the quota leaves.
func TestQuotaSizesDisk(t *testing.T) {
	b := newBed(t)
	b.limited("64101:disk=1100M")
	s := b.serve()
	r := b.create(s, &pb.CreateDiskImageRequest{VmName: "x"})
	fi, err := os.Stat(r.DiskPath)
	if err != nil || fi.Size() > 1100<<20 || fi.Size() < minAutoDisk {
		t.Errorf("%v: %v, %v", r, fi, err)
	}
}

func qcow2Header(size uint64) []byte {
	h := make([]byte, 104)
	copy(h, "QFI\xfb")
	binary.BigEndian.PutUint32(h[4:], 3)
	binary.BigEndian.PutUint64(h[24:], size)
	return h
}

// The logs of VMs that do not run make room for those of VMs that start.
func TestQuotaOfLogs(t *testing.T) {
	b := newBed(t)
	b.limited("64101:logs=2M")
	s := b.serve()
	for i, name := range []string{"old", "new"} {
		path := s.logPath(keyOf(labelled(alice, "l").Owner, name))
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, p := range []string{path, path + ".1"} {
			if err := os.WriteFile(p, make([]byte, 800<<10), 0o600); err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			at := fi.ModTime().AddDate(0, 0, i-2)
			if err := os.Chtimes(p, at, at); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := b.small(s, "x"); err != nil {
		t.Fatal(err)
	}
	logs, err := s.logsOf(64101)
	if err != nil || len(logs) != 2 {
		t.Fatalf("%v, %v", logs, err)
	}
	for _, l := range logs {
		if strings.Contains(l.path, fileName("old")) {
			t.Errorf("the oldest log is still there: %v", l)
		}
	}
	b.stop(s, "x")
}

func TestQuotaRules(t *testing.T) {
	q := &Quota{Default: Limits{VMs: 16, Memory: Unlimited, Disk: Unlimited, Logs: 1}}
	for _, text := range []string{"root:vms=1", "@root:vms=2,disk=1G", "@0:memory=1M", "0:vms=3", " 7 : vms=unlimited , memory=1.G"} {
		r, err := ParseQuotaRule(text)
		if strings.Contains(text, "1.G") {
			if err == nil {
				t.Errorf("%q is taken", text)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		q.Rules = append(q.Rules, r)
	}
	if l := q.For(0); l != (Limits{VMs: 3, Memory: 1 << 20, Disk: 1 << 30, Logs: 1}) {
		t.Errorf("root: %+v", l)
	}
	if l := q.For(4000000001); l != q.Default {
		t.Errorf("somebody: %+v", l)
	}
	if l := (*Quota)(nil).For(1); l != NoLimits() {
		t.Errorf("without a quota: %+v", l)
	}
	for _, text := range []string{"", "root", "root:", ":vms=1", "@:vms=1", "root:vms", "root:vms=-1", "root:vms=many", "root:cpus=1", "root:disk=9999999T", "root:vms=1,,"} {
		if _, err := ParseQuotaRule(text); err == nil {
			t.Errorf("%q is taken", text)
		} else if !strings.Contains(err.Error(), "USER:vms=4") {
			t.Errorf("%q: the error does not say how: %v", text, err)
		}
	}
	if _, err := user.LookupId("0"); err != nil {
		t.Fatal(err)
	}
}

func FuzzQuotaRule(f *testing.F) {
	f.Add("alice:vms=4,memory=8G,disk=100G")
	f.Add("@kids:logs=unlimited")
	f.Add(":=,")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseQuotaRule(text)
		if err != nil {
			return
		}
		if r.Who == "" || r.set == nil {
			t.Fatalf("%q: %+v", text, r)
		}
		l := NoLimits()
		r.set(&l)
	})
}

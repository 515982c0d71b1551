package cicerone

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/auberge-vm/auberge/guestlink/garcon"
	"github.com/auberge-vm/auberge/policy"
	"github.com/auberge-vm/auberge/protos/appspb"
	pb "github.com/auberge-vm/auberge/protos/ciceronepb"
)

// A record is what is kept of a VM: of one that has stopped only whose it is
// and what its containers are called.
type record struct {
	UID   uint32 `json:"uid"`
	Label string `json:"label,omitempty"`
	Word  string `json:"word,omitempty"`
	Name  string `json:"name"`
	// CID and PID are zero when it does not run.
	CID   uint32   `json:"cid,omitempty"`
	PID   uint32   `json:"pid,omitempty"`
	Type  int32    `json:"type,omitempty"`
	Names []string `json:"names,omitempty"`

	Ready      bool              `json:"ready,omitempty"`
	Containers []containerRecord `json:"containers,omitempty"`
	Operations []opRecord        `json:"operations,omitempty"`
}

type containerRecord struct {
	Name    string        `json:"name"`
	Token   string        `json:"token,omitempty"`
	Pending string        `json:"pending,omitempty"`
	Running bool          `json:"running,omitempty"`
	Port    uint32        `json:"port,omitempty"`
	Address string        `json:"address,omitempty"`
	User    string        `json:"user,omitempty"`
	Home    string        `json:"home,omitempty"`
	Sftp    uint32        `json:"sftp,omitempty"`
	OS      *pb.OsRelease `json:"os,omitempty"`
	// Inhibits are the cookies of what keeps the screen on.
	Inhibits []int32 `json:"inhibits,omitempty"`
	// Watches are the paths of which changes are told.
	Watches []string `json:"watches,omitempty"`

	// kept are in files of their own.
	kept [listKinds][]byte
}

type opRecord struct {
	Kind      opKind `json:"kind"`
	Container string `json:"container,omitempty"`
	UUID      string `json:"uuid,omitempty"`
	// Ends says that it ends with the service that began it.
	Ends bool `json:"ends,omitempty"`
}

func (s *Service) recordPath(k key) string { return s.statePath(k, "json") }

func (s *Service) statePath(k key, ending string) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d\x00%s\x00%s", k.uid, k.label, k.name))
	return filepath.Join(s.cfg.StateDir, hex.EncodeToString(sum[:16])+"."+ending)
}

// snapshot is the VM as it is now; mu is held.
func (v *vm) snapshot() record {
	r := record{UID: v.info.Owner.UID, Label: v.info.Owner.Label, Word: v.info.Owner.Word, Name: v.info.Name, Names: slices.Sorted(maps.Keys(v.names))}
	if v.gone {
		return r
	}
	r.CID, r.PID, r.Type, r.Ready = v.info.CID, v.info.PID, int32(v.info.Type), v.ready
	for _, n := range slices.Sorted(maps.Keys(v.containers)) {
		c := v.containers[n]
		r.Containers = append(r.Containers, containerRecord{Name: n, Token: c.token, Pending: c.pending, Running: c.running,
			Port: c.port, Address: c.address, User: c.user, Home: c.home, Sftp: c.sftp, OS: c.os, Inhibits: slices.Sorted(maps.Keys(c.inhibits)),
			Watches: slices.Sorted(maps.Keys(c.watches))})
	}
	for _, o := range v.ops {
		r.Operations = append(r.Operations, opRecord{Kind: o.kind, Container: o.container, UUID: o.uuid, Ends: o.stream != nil || o.lost || !o.accepted})
	}
	return r
}

// A saveLine is where those wait that write what is of one VM.
type saveLine struct {
	turn    sync.Mutex
	waiting int // and writing
}

// saveTurn lets one at a time write what is of a VM; what it returns ends that.
// VMs of other names, which may be other users', do not wait for each other.
func (v *vm) saveTurn() func() { return v.s.saveTurn(v.key) }

func (s *Service) saveTurn(k key) func() {
	s.mu.Lock()
	l := s.saveLines[k]
	if l == nil {
		l = &saveLine{}
		s.saveLines[k] = l
	}
	l.waiting++
	s.mu.Unlock()
	l.turn.Lock()
	return func() {
		l.turn.Unlock()
		s.mu.Lock()
		defer s.mu.Unlock()
		if l.waiting--; l.waiting == 0 {
			delete(s.saveLines, k)
		}
	}
}

// saveSoon is save for those who do not wait for it, once for all of them; mu
// is held.
func (v *vm) saveSoon() {
	if v.saving {
		return
	}
	v.saving = v.s.beginLocked(v.saved)
}

// saved returns when what saveSoon was asked for is written down.
func (v *vm) saved() {
	defer v.saveTurn()()
	v.s.mu.Lock()
	due := v.saving
	v.s.mu.Unlock()
	if due {
		v.saveNow()
	}
}

func (v *vm) isGone() bool {
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	return v.gone
}

// save writes the VM's record. A failure costs what the next run of the
// service knows, and nothing now.
func (v *vm) save() {
	defer v.saveTurn()()
	v.saveNow()
}

// saveNow is save for who has the turn.
func (v *vm) saveNow() {
	v.s.mu.Lock()
	v.saving = false // what comes now is not in this one
	r := v.snapshot()
	// The name may have another VM by now, whose record it is.
	other := v.s.vms[v.key] != v && (!v.gone || v.s.vms[v.key] != nil)
	v.s.mu.Unlock()
	if other {
		return
	}
	if v.isGone() {
		v.s.removeLists(v.key)
	}
	if err := v.s.write(v.key, r); err != nil {
		v.log.Error("what must be known after a restart is not written down", "err", err)
	}
}

// maxStopped is of how many VMs of a user that do not run the containers' names
// are kept. Nobody says here that a VM's disk was erased.
const maxStopped = 256

// prune removes a user's oldest records of VMs that do not run.
func (s *Service) prune(uid uint32) {
	if err := turn(s.quit, s.pruneTurn); err != nil {
		return
	}
	defer func() { <-s.pruneTurn }()
	type stopped struct {
		key   key
		since time.Time
	}
	var all []stopped
	for k, r := range s.records() {
		if k.uid != uid || r.CID != 0 {
			continue
		}
		if fi, err := os.Stat(s.recordPath(k)); err == nil {
			all = append(all, stopped{k, fi.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b stopped) int { return b.since.Compare(a.since) })
	for _, o := range all[min(len(all), maxStopped):] {
		s.forgetStopped(o.key)
	}
}

// forgetStopped removes a record unless the VM runs again.
func (s *Service) forgetStopped(k key) {
	defer s.saveTurn(k)()
	s.mu.Lock()
	runs := s.vms[k] != nil
	s.mu.Unlock()
	if runs {
		return
	}
	if err := os.Remove(s.recordPath(k)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("the record of a VM that has stopped is left over", "err", err)
	}
}

func (s *Service) write(k key, r record) error {
	path := s.recordPath(k)
	if r.CID == 0 && len(r.Names) == 0 {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return renameio.WriteFile(path, data, 0o600)
}

// maxRecord bounds a record that is read.
const maxRecord = 8 << 20

// records returns all records of VMs.
func (s *Service) records() map[key]record {
	all := map[key]record{}
	entries, err := os.ReadDir(s.cfg.StateDir)
	if err != nil {
		s.log.Error("what was known before is lost", "err", err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".json" {
			continue
		}
		path := filepath.Join(s.cfg.StateDir, e.Name())
		r, err := readRecord(path)
		if err == nil && path != s.recordPath(key{r.UID, r.Label, r.Name}) {
			err = fmt.Errorf("it is another VM's")
		}
		if err != nil {
			s.log.Error("the record of a VM cannot be read and is left out", "path", path, "err", err)
			continue
		}
		all[key{r.UID, r.Label, r.Name}] = r
	}
	return all
}

func readRecord(path string) (record, error) {
	var r record
	fi, err := os.Stat(path)
	if err != nil {
		return r, err
	}
	if fi.Size() > maxRecord {
		return r, fmt.Errorf("%d bytes are too many", fi.Size())
	}
	data, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	return r, err
}

// known returns what is written down of a VM, if anything.
func (s *Service) known(k key) record {
	r, _ := readRecord(s.recordPath(k))
	for i, c := range r.Containers {
		if c.Running && checkContainer(c.Name) == nil {
			r.Containers[i].kept = s.readLists(k, c.Name)
		}
	}
	return r
}

// vm is the VM that a record is of.
func (r record) vm() VM {
	return VM{CID: r.CID, PID: r.PID, Name: r.Name, Type: appspb.VmType(r.Type),
		Owner: policy.Owner{UID: r.UID, Label: r.Label, Word: r.Word}}
}

// restore puts what a record says into a VM that is not in the table yet.
// Whether containers still run is found out later.
func (v *vm) restore(r record) {
	for _, n := range r.Names {
		if checkContainer(n) == nil {
			v.named(n)
		}
	}
	if !same(r.vm(), v.info) {
		return
	}
	v.ready = r.Ready
	for _, k := range r.Containers {
		c, err := v.known(k.Name)
		if err != nil {
			break
		}
		c.token, c.pending, c.running, c.port = k.Token, k.Pending, k.Running, k.Port
		c.address, c.user, c.home, c.sftp, c.os = k.Address, k.User, k.Home, k.Sftp, k.OS
		for _, cookie := range k.Inhibits {
			c.inhibits[cookie] = true
		}
		for _, path := range k.Watches {
			c.watches[path] = true
		}
		if c.running {
			c.kept = k.kept
			c.garcon = garcon.NewClient(v.dialer(c.port))
		}
	}
	for _, k := range r.Operations {
		o := newOperation(k.Kind, k.Container)
		o.uuid = k.UUID
		o.lost, o.accepted = k.Ends, true
		close(o.replied)
		o.mark()
		v.ops[o.key()] = o
	}
}

// same says whether two are one VM, and not two that had the same name.
func same(a, b VM) bool {
	return keyOf(a.Owner, a.Name) == keyOf(b.Owner, b.Name) && a.CID == b.CID && (a.PID == b.PID || a.PID == 0 || b.PID == 0)
}

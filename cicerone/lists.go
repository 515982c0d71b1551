package cicerone

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/protos/appspb"
	"github.com/auberge-vm/auberge/protos/vmtoolspb"
)

// A listKind is one of the lists that a container has the desktop show whole,
// when they change.
type listKind int

const (
	appList listKind = iota
	mimeList
	listKinds
)

var kinds = [listKinds]struct {
	what string
	most int
	// ending is that of the files with such lists.
	ending string
	empty  func() list
}{
	appList:  {"applications", 4096, "apps", func() list { return &appspb.ApplicationList{} }},
	mimeList: {"file types", 8192, "types", func() list { return &appspb.MimeTypes{} }},
}

func (k listKind) String() string { return kinds[k].what }

// A list is one in the desktop's terms.
type list interface {
	proto.Message
	GetVmName() string
	GetOwnerId() string
}

// mayTell refuses a container's list of so many entries that is too long, or
// comes too soon.
func (l containerListener) mayTell(c *container, kind listKind, n int, r proto.Message) error {
	if most := kinds[kind].most; n > most {
		return status.Errorf(codes.ResourceExhausted, "%d %s are more than %d", n, kind, most)
	}
	if proto.Size(r) > maxListBytes {
		return status.Errorf(codes.ResourceExhausted, "the list of %s is longer than %d bytes", kind, maxListBytes)
	}
	l.v.s.mu.Lock()
	defer l.v.s.mu.Unlock()
	if w := &c.lists[kind]; !w.allow(time.Now()) {
		return status.Errorf(codes.ResourceExhausted, "more than %d lists of %s in %s", w.limit, kind, w.span)
	}
	return nil
}

// tellList keeps a container's list and shows it.
func (l containerListener) tellList(ctx context.Context, c *container, kind listKind, all list) (*vmtoolspb.EmptyMessage, error) {
	v := l.v
	if err := v.keepList(c, kind, all); err != nil {
		return nil, status.Error(codes.ResourceExhausted, err.Error())
	}
	v.saveList(c, kind)
	return l.shown("list of "+kind.String(), v.s.showList(ctx, v.info.Owner.UID, all))
}

func (s *Service) showList(ctx context.Context, owner uint32, all list) error {
	ctx, cancel := context.WithTimeout(ctx, desktopTimeout)
	defer cancel()
	switch all := all.(type) {
	case *appspb.ApplicationList:
		return s.cfg.Desktop.UpdateApplicationList(ctx, owner, all)
	case *appspb.MimeTypes:
		return s.cfg.Desktop.UpdateMimeTypes(ctx, owner, all)
	}
	return fmt.Errorf("a desktop is shown no %T", all)
}

// keepList remembers what a container has.
func (v *vm) keepList(c *container, kind listKind, l list) error {
	data, err := proto.Marshal(l)
	if err != nil {
		return err
	}
	v.s.mu.Lock()
	defer v.s.mu.Unlock()
	all := len(data) - len(c.kept[kind])
	for _, o := range v.containers {
		for _, k := range o.kept {
			all += len(k)
		}
	}
	if all > maxAllListBytes {
		return fmt.Errorf("the lists of the VM's containers are together longer than %d bytes", maxAllListBytes)
	}
	if c.running {
		c.kept[kind] = data
	}
	return nil
}

// An agent sends its lists when they change, and that may be long ago when this
// service is started anew: the last ones are kept beside the record.
func (s *Service) listPath(k key, container string, kind listKind) string {
	return s.statePath(k, container+"."+kinds[kind].ending)
}

func (v *vm) saveList(c *container, kind listKind) {
	defer v.saveTurn()()
	v.s.mu.Lock()
	data := c.kept[kind]
	gone := v.gone || v.s.vms[v.key] != v
	v.s.mu.Unlock()
	if data == nil || gone {
		return
	}
	if err := renameio.WriteFile(v.s.listPath(v.key, c.name, kind), data, 0o600); err != nil {
		v.log.Error("what a container has told is not written down", "container", c.name, "what", kind, "err", err)
	}
}

func (s *Service) readLists(k key, container string) (kept [listKinds][]byte) {
	for kind := range listKinds {
		path := s.listPath(k, container, kind)
		if fi, err := os.Stat(path); err != nil || fi.Size() > 2*maxListBytes {
			continue
		}
		data, err := os.ReadFile(path)
		if err != nil || proto.Unmarshal(data, kinds[kind].empty()) != nil {
			continue // it comes again with the next change
		}
		kept[kind] = data
	}
	return kept
}

// removeLists removes the lists of a container that was deleted.
func (v *vm) removeLists(container string) {
	defer v.saveTurn()()
	for kind := range listKinds {
		v.s.mu.Lock()
		c := v.containers[container] // there may be another one already
		keep := v.gone || v.s.vms[v.key] != v || c != nil && c.kept[kind] != nil
		v.s.mu.Unlock()
		if keep {
			continue
		}
		if err := os.Remove(v.s.listPath(v.key, container, kind)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			v.log.Warn("a list of a deleted container is left over", "container", container, "what", kind, "err", err)
		}
	}
}

// removeLists removes the lists of all of a VM's containers.
func (s *Service) removeLists(k key) {
	for kind := range listKinds {
		paths, err := filepath.Glob(s.listPath(k, "*", kind))
		for _, p := range paths {
			err = errors.Join(err, os.Remove(p))
		}
		if err != nil {
			s.log.Warn("lists of containers are left over", "what", kind, "err", err)
		}
	}
}

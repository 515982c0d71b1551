package cicerone_test

import (
	"testing"

	"github.com/auberge-vm/auberge/protos/appspb"
	cpb "github.com/auberge-vm/auberge/protos/containerpb"
)

// A desktop that comes is shown what containers of its user have told before,
// and nobody else's is.
func TestDesktopThatComes(t *testing.T) {
	w := newWorld(t)
	s := w.serve()
	for i, vm := range []string{"termina", "other"} {
		m, _ := w.up(s, vm, uint32(33+i))
		token, _ := m.running(s, "penguin", 10000)
		must(t)(m.container.UpdateApplicationList(t.Context(), &cpb.UpdateApplicationListRequest{Token: token,
			Application: []*cpb.Application{{DesktopFileId: "of-" + vm}}}))
		m.running(s, "silent", 10001) // which has told nothing
	}
	take := func() (lists []*appspb.ApplicationList) {
		w.mu.Lock()
		defer w.mu.Unlock()
		lists, w.lists = w.lists, nil
		return lists
	}
	take()
	s.DesktopAppeared(t.Context(), uid+1)
	if got := take(); len(got) > 0 {
		t.Errorf("another user's desktop is shown %v", got)
	}
	s.DesktopAppeared(t.Context(), uid)
	shown := map[string]string{}
	for _, l := range take() {
		shown[l.VmName+"/"+l.ContainerName] = l.Apps[0].DesktopFileId
	}
	if len(shown) != 2 || shown["termina/penguin"] != "of-termina" || shown["other/penguin"] != "of-other" {
		t.Errorf("it is shown %v", shown)
	}
}

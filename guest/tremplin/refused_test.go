package tremplin

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// The host learns at once that its stream is not wanted: what was refused would
// hold one of few places until nobody had used it for long.
func TestARefusedTransferIsClosed(t *testing.T) {
	f, s, _ := newFakeIncus(t)
	f.set(func() { f.status["penguin"] = incus.Running })
	f.end()
	f.begin()
	eventually(t, "it runs", func() bool { return len(s.states.list()) > 0 })
	for _, c := range []struct {
		what, want string
		ask        func(path string) string
	}{
		{"an import over what runs", "stop it", func(path string) string {
			r, _ := s.ImportContainer(t.Context(), &pb.ImportContainerRequest{ContainerName: "penguin", ImportPath: path})
			return r.GetFailureReason()
		}},
		{"an import without a name", "no container", func(path string) string {
			r, _ := s.ImportContainer(t.Context(), &pb.ImportContainerRequest{ImportPath: path})
			return r.GetFailureReason()
		}},
		{"an export of nothing", "no container", func(path string) string {
			r, _ := s.ExportContainer(t.Context(), &pb.ExportContainerRequest{ContainerName: "none", ExportPath: path})
			return r.GetFailureReason()
		}},
	} {
		const id = "01234567-89ab-cdef-0123-456789abcdef"
		host := s.moves.opened(id)
		if got := c.ask(transferPrefix + id); !strings.Contains(got, c.want) {
			t.Errorf("%s is refused with %q", c.what, got)
		}
		if left := s.moves.take(id); left != nil {
			t.Errorf("%s leaves its stream", c.what)
			left.conn.Close()
		} else if _, err := host.Read(make([]byte, 1)); err == nil {
			t.Errorf("%s: the host hears something", c.what)
		}
		host.Close()
	}
}

// opened is the host's end of a transfer.
func (t *transfers) opened(id string) net.Conn {
	host, guest := net.Pipe()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting[id] = &transfer{conn: guest, late: time.NewTimer(time.Hour)}
	return host
}

// An import ends with its Incus, also while nothing comes from the host.
func TestAnImportEndsWithIncus(t *testing.T) {
	f, s, host := newFakeIncus(t)
	f.uploads = func() { f.end(); f.begin() }
	const id = "01234567-89ab-cdef-0123-456789abcdef"
	defer s.moves.opened(id).Close()
	r, err := s.ImportContainer(t.Context(), &pb.ImportContainerRequest{ContainerName: "penguin", ImportPath: transferPrefix + id})
	if err != nil || r.Status != pb.ImportContainerResponse_IMPORTING {
		t.Fatalf("%v, %v", r, err)
	}
	eventually(t, "the host hears of its end", func() bool { return host.has("penguin FAILED 0% 0/s Incus does not take the archive") })
}

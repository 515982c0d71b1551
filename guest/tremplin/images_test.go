package tremplin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
)

// imageServer answers for images only. It is not Incus, which finishes a
// cancelled upload when it likes.
type imageServer struct {
	mu      sync.Mutex
	images  []string
	deleted []string
}

func (i *imageServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if r.Method == http.MethodDelete {
		i.deleted = append(i.deleted, path.Base(r.URL.Path))
		fmt.Fprint(w, `{"type":"async","metadata":{"id":"x","status_code":200}}`)
		return
	}
	fmt.Fprintf(w, `{"type":"sync","metadata":[%s]}`, strings.Join(i.images, ","))
}

// What Incus got although nobody waits for it any more is removed, and nothing
// else is.
func TestAnImageThatNobodyWaitsForIsRemoved(t *testing.T) {
	s := &Server{cfg: Config{IncusDir: t.TempDir(), ToolsDir: t.TempDir()}, log: quiet(), images: newImageStore(), ctx: t.Context()}
	l, err := net.Listen("unix", s.cfg.socket())
	if err != nil {
		t.Fatal(err)
	}
	have := &imageServer{images: []string{`{"fingerprint":"used"}`, `{"fingerprint":"orphan"}`}}
	srv := &http.Server{Handler: have}
	go srv.Serve(l)
	defer srv.Close()
	s.incus = incus.New(s.cfg.socket())
	defer s.incus.Close()

	release := s.passing("used")
	first, second := s.arrival(), s.arrival()
	first(errors.New("cancelled"))
	s.running.Wait()
	if len(have.deleted) != 0 {
		t.Errorf("%q went while another image arrives", have.deleted)
	}
	second(nil)
	s.running.Wait()
	if !slices.Equal(have.deleted, []string{"orphan"}) {
		t.Errorf("%q were removed", have.deleted)
	}
	s.arrival()(nil)
	release()
	s.running.Wait()
	if !slices.Equal(have.deleted, []string{"orphan", "used"}) {
		t.Errorf("%q were removed", have.deleted)
	}
}

// A cancelled creation does not wait for another one's upload.
func TestAWaitForTheShippedImageCanBeCancelled(t *testing.T) {
	tools := t.TempDir()
	s := &Server{cfg: Config{ToolsDir: tools}, log: quiet(), images: newImageStore()}
	shipped(t, tools)
	s.images.shipping <- struct{}{}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errCancelled)
	if _, _, err := (shippedImage{s}).fetch(ctx, nil); !errors.Is(err, errCancelled) {
		t.Error(err)
	}
}

func shipped(t *testing.T, tools string) {
	t.Helper()
	if err := os.Mkdir(tools+"/image", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"metadata.tar.xz", "rootfs.squashfs"} {
		if err := os.WriteFile(tools+"/image/"+name, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A server as it is made gets to Incus with the first upload.
func TestTheFirstUploadWaitsForNobody(t *testing.T) {
	dir := t.TempDir()
	shipped(t, dir)
	s, err := NewServer(Config{ToolsDir: dir, IncusDir: dir}, quiet(), func(context.Context) (net.Conn, error) { return nil, net.ErrClosed })
	if err != nil {
		t.Fatal(err)
	}
	defer s.end()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, _, err := (shippedImage{s}).fetch(ctx, nil); err == nil || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("without an Incus: %v", err)
	}
}

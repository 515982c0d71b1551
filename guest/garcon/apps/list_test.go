package apps_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

func TestListSaysEverything(t *testing.T) {
	p := newPlace(t, func(p *place) {
		p.owner = func(_ context.Context, path string) (string, error) {
			return "editor;1.0;all;" + filepath.Base(path), nil
		}
	})
	p.write("applications/org.editor.desktop", `[Desktop Entry]
Type=Application
Name=Editor
Name[de]=Schreiber
Comment=Writes
Keywords=a;b;
Keywords[de]=c;
Exec=env A=1 /usr/bin/editor %U
NoDisplay=true
Terminal=true
StartupNotify=true
StartupWMClass=Ed
MimeType=text/plain;
`)
	p.run()
	value := func(l, v string) *pb.Application_LocalizedString_StringWithLocale {
		return &pb.Application_LocalizedString_StringWithLocale{Locale: l, Value: v}
	}
	want := &pb.Application{
		DesktopFileId: "org.editor",
		Name:          &pb.Application_LocalizedString{Values: []*pb.Application_LocalizedString_StringWithLocale{value("", "Editor"), value("de", "Schreiber")}},
		Comment:       &pb.Application_LocalizedString{Values: []*pb.Application_LocalizedString_StringWithLocale{value("", "Writes")}},
		Keywords: &pb.Application_LocaleStrings{Values: []*pb.Application_LocaleStrings_StringsWithLocale{
			{Locale: "", Value: []string{"a", "b"}}, {Locale: "de", Value: []string{"c"}},
		}},
		MimeTypes: []string{"text/plain"}, NoDisplay: true, Terminal: true, StartupNotify: true, StartupWmClass: "Ed",
		Exec: "env A=1 /usr/bin/editor %U", ExecutableFileName: "editor", PackageId: "editor;1.0;all;org.editor.desktop",
	}
	if diff := cmp.Diff([]*pb.Application{want}, p.next(), protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
}

func TestFirstFileWins(t *testing.T) {
	p := newPlace(t)
	mine := filepath.Join(p.home, ".local/share/applications")
	p.write(mine+"/a.desktop", entry("mine", ""))
	p.write("applications/a.desktop", entry("system", ""))
	p.write(mine+"/hidden.desktop", entry("x", "Hidden=true\n"))
	p.write("applications/hidden.desktop", entry("x", ""))
	p.write(mine+"/broken.desktop", "what")
	p.write("applications/broken.desktop", entry("whole", ""))
	p.write("applications/sub/deep/b.desktop", entry("b", ""))
	p.write("applications/sub-deep-b.desktop", entry("flat", ""))
	p.write("applications/c.desktop.bak", entry("c", ""))
	p.run()
	list := p.next()
	names := map[string]string{}
	for _, a := range list {
		names[a.GetDesktopFileId()] = a.GetName().GetValues()[0].GetValue()
	}
	if diff := cmp.Diff(map[string]string{"a": "mine", "broken": "whole", "sub-deep-b": "flat"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestListFollowsChanges(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.until()
	apps := filepath.Join(p.system, "applications")
	p.write(apps+"/a.desktop", entry("a", "")) // the directory comes with it
	p.until("a")
	p.write(apps+"/x/y/b.desktop", entry("b", ""))
	p.until("a", "x-y-b")
	if err := os.RemoveAll(apps); err != nil {
		t.Fatal(err)
	}
	p.until()
	p.write(apps+"/x/y/b.desktop", entry("b", ""))
	p.until("x-y-b")
	p.write(apps+"/x/y/b.desktop", entry("b", "Hidden=true\n"))
	p.until()
	// The user's: nothing of the way to it is there.
	mine := filepath.Join(p.home, ".local/share/applications")
	p.write(mine+"/mine.desktop", entry("mine", ""))
	p.until("mine")
	if err := os.Rename(filepath.Join(p.home, ".local/share"), filepath.Join(p.home, "away")); err != nil {
		t.Fatal(err)
	}
	p.until()
	p.write(mine+"/again.desktop", entry("again", ""))
	p.until("again")
	if err := os.RemoveAll(filepath.Join(p.home, ".local")); err != nil {
		t.Fatal(err)
	}
	p.until()
	// A directory that is moved in at once, with what is in it.
	p.write(filepath.Join(p.home, "away/applications/kde/k.desktop"), entry("k", ""))
	if err := os.Rename(filepath.Join(p.home, "away/applications"), apps+"/moved"); err != nil {
		t.Fatal(err)
	}
	p.until("moved-kde-k", "moved-mine")
}

func TestPendingBeforeAndAfter(t *testing.T) {
	// Only the latest number is told: the one before the list must have its time.
	p := newPlace(t, func(p *place) { p.coalesce = time.Second })
	p.run()
	p.until()
	last := func(want uint32) {
		t.Helper()
		for {
			select {
			case n := <-p.host.counts:
				if n == want {
					return
				}
			case <-time.After(patience):
				t.Fatalf("no count of %d came", want)
			}
		}
	}
	last(0)
	p.write("applications/a.desktop", entry("a", ""))
	last(1)
	p.until("a")
	last(0)
}

func TestChangesAreGathered(t *testing.T) {
	p := newPlace(t)
	p.run()
	p.until()
	want := []string{}
	for i := range 500 {
		p.write(fmt.Sprintf("applications/a%03d.desktop", i), entry("a", ""))
		want = append(want, fmt.Sprintf("a%03d", i))
	}
	lists := 1
	for !slices.Equal(ids(p.next()), want) {
		lists++
	}
	if lists > 250 {
		t.Errorf("%d lists for 500 changes", lists)
	}
}

// A host that has had too many lists gets the last one, and only that, when it
// takes lists again; and so with MIME types.
func TestRefusedListsComeAgain(t *testing.T) {
	p := newPlace(t, func(p *place) { p.host.refuse, p.host.refuseMimes = 4, 3 })
	p.write("applications/a.desktop", entry("a", ""))
	p.run()
	left := func(count *int) func() int {
		return func() int {
			p.host.mu.Lock()
			defer p.host.mu.Unlock()
			return *count
		}
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for deadline := time.After(patience); !ok(); {
			select {
			case <-tick.C:
			case <-deadline:
				t.Fatal(what)
			}
		}
	}
	lists := left(&p.host.refuse)
	for _, name := range []string{"b", "c"} {
		before := lists()
		until("nothing is told again", func() bool { return lists() < before || lists() == 0 })
		p.write("applications/"+name+".desktop", entry(name, ""))
	}
	p.until("a", "b", "c")
	select {
	case m := <-p.host.mimes:
		if len(m) != 0 {
			t.Errorf("%d types without a cache", len(m))
		}
	case <-time.After(patience):
		t.Fatal("no MIME types came")
	}
	if lists() != 0 || left(&p.host.refuseMimes)() != 0 {
		t.Error("not everything was refused")
	}
	p.write("applications/d.desktop", entry("d", ""))
	if got := ids(p.next()); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("after that comes %q", got)
	}
}

func TestRefreshTellsAgain(t *testing.T) {
	p := newPlace(t)
	p.write("applications/a.desktop", entry("a", ""))
	p.run()
	p.until("a")
	<-p.host.mimes
	p.Refresh()
	p.until("a")
	<-p.host.mimes
}

func TestOwnersAreAskedOnce(t *testing.T) {
	var mu sync.Mutex
	asked := map[string]int{}
	var busy atomic.Int32
	p := newPlace(t, func(p *place) {
		p.owner = func(_ context.Context, path string) (string, error) {
			if busy.Add(1) > 1 {
				t.Error("two questions at once")
			}
			defer busy.Add(-1)
			mu.Lock()
			defer mu.Unlock()
			asked[filepath.Base(path)]++
			if strings.Contains(path, "fails") {
				return "", errors.New("no PackageKit")
			}
			return "p", nil
		}
	})
	p.write("applications/a.desktop", entry("a", ""))
	p.write(filepath.Join(p.home, ".local/share/applications/mine.desktop"), entry("mine", ""))
	p.run()
	p.until("a", "mine")
	p.write("applications/b.desktop", entry("b", ""))
	list := p.until("a", "b", "mine")
	if list[0].PackageId != "p" || list[1].PackageId != "p" || list[2].PackageId != "" {
		t.Errorf("the packages are %q, %q, %q", list[0].PackageId, list[1].PackageId, list[2].PackageId)
	}
	p.write("applications/a.desktop", entry("a", "Terminal=true\n"))
	p.until("a", "b", "mine")
	for i := range 10 {
		p.write(fmt.Sprintf("applications/fails%d.desktop", i), entry("b", ""))
	}
	p.until("a", "b", "fails0", "fails1", "fails2", "fails3", "fails4", "fails5", "fails6", "fails7", "fails8", "fails9", "mine")
	mu.Lock()
	defer mu.Unlock()
	if asked["a.desktop"] != 2 || asked["b.desktop"] != 1 || asked["mine.desktop"] != 0 {
		t.Errorf("asked: %v", asked)
	}
}

func TestMimeTypes(t *testing.T) {
	p := newPlace(t)
	p.run()
	next := func() map[string]string {
		t.Helper()
		select {
		case m := <-p.host.mimes:
			return m
		case <-time.After(patience):
			t.Fatal("no MIME types came")
			return nil
		}
	}
	if m := next(); len(m) != 0 {
		t.Errorf("%d types without a cache", len(m))
	}
	data, err := os.ReadFile("/usr/share/mime/mime.cache")
	if err != nil {
		t.Fatal(err, "(needs the package shared-mime-info)")
	}
	p.write("mime/mime.cache", string(data))
	if m := next(); m["png"] != "image/png" {
		t.Errorf("png is %q of %d", m["png"], len(m))
	}
	p.write("mime/mime.cache", "broken")
	if m := next(); len(m) != 0 {
		t.Errorf("%d types of a broken cache", len(m))
	}
}

func TestBombs(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.system, "applications")
	p.write("applications/good.desktop", entry("good", ""))
	large := p.write("applications/large.desktop", entry("large", ""))
	if err := os.Truncate(large, 20<<30); err != nil {
		t.Fatal(err)
	}
	zeros := p.write("applications/zeros.desktop", entry("zeros", ""))
	if err := os.Truncate(zeros, 10<<20); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(dir+"/fifo.desktop", 0o644); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"zero.desktop": "/dev/zero", "self.desktop": "self.desktop", "loop": ".", "up": "..", "root": "/proc/self/root" + dir} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	deep := dir
	for range 40 {
		deep += "/d"
	}
	p.write(deep+"/deep.desktop", entry("deep", ""))
	p.run()
	if got := ids(p.next()); !slices.Equal(got, []string{"good"}) {
		t.Errorf("the list has %q", got)
	}
}

func TestLongTextsAreCut(t *testing.T) {
	p := newPlace(t)
	text := strings.Repeat("x", 20000)
	var long strings.Builder
	for i := range 200 {
		fmt.Fprintf(&long, "Comment[l%d]=%s\nKeywords[l%d]=%s;\n", i, text, i, text)
	}
	p.write("applications/a.desktop", entry("a", long.String()))
	p.write("applications/b.desktop", entry("b", "Name[de]="+strings.Repeat("y", 50000)+"\n"))
	p.write("applications/toolong.desktop", entry(strings.Repeat("z", 65500), "Comment="+text+"\n"))
	p.run()
	list := p.next()
	if got := ids(list); !slices.Equal(got, []string{"a", "b"}) {
		t.Fatalf("the list has %q", got)
	}
	if n := proto.Size(list[0]); n > 64<<10 {
		t.Errorf("an application of %d bytes", n)
	}
	if len(list[1].GetName().GetValues()) != 2 {
		t.Error("a translation was cut where there was room")
	}
}

// A list that is longer than the host takes is no list at all to it.
func TestListFitsTheHost(t *testing.T) {
	p := newPlace(t)
	for i := range 60 {
		p.write(fmt.Sprintf("applications/a%02d.desktop", i), entry("a", "Comment=c\nComment[de]="+strings.Repeat("d", 50000)+"\n"))
	}
	p.run()
	list := p.next()
	if len(list) != 60 || list[59].GetComment().GetValues()[0].GetValue() != "c" {
		t.Errorf("the list has %d applications", len(list))
	}
}

// Far more than is looked at, and more text than a message holds.
func TestHundredThousandFiles(t *testing.T) {
	p := newPlace(t)
	dir := filepath.Join(p.system, "applications")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	one := filepath.Join(p.system, "one")
	if err := os.WriteFile(one, []byte(entry("x", "Comment="+strings.Repeat("c", 1000)+"\nComment[de]="+strings.Repeat("c", 1000)+"\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	for i := range 100000 {
		if i%60000 == 59999 { // a file has so many names and no more
			os.Rename(one, one+"0")
			if err := os.WriteFile(one, []byte(entry("x", "")), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Link(one, fmt.Sprintf("%s/%06d.desktop", dir, i)); err != nil {
			t.Fatal(err)
		}
	}
	p.run()
	list := p.next()
	if len(list) != 4096 {
		t.Errorf("the list has %d applications", len(list))
	}
	if n := proto.Size(&pb.UpdateApplicationListRequest{Application: list}); n > 2<<20 {
		t.Errorf("the list has %d bytes", n)
	}
}

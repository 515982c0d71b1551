package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/google/renameio/v2"

	image "github.com/auberge-vm/auberge/packaging/image"
)

// A kind is a sort of error with a name for clients.
type kind struct{ text, name string }

func (k *kind) Error() string { return k.text }

// BusErrorName is the error's name on our own interfaces.
func (k *kind) BusErrorName() string { return "io.github.auberge_vm.Error." + k.name }

// Errors a caller can branch on.
var (
	ErrNotInstalled = &kind{"the guest image is not installed", "NotInstalled"}
	ErrDamaged      = &kind{"the guest image is damaged", "Damaged"}
	ErrNoSpace      = &kind{"there is not enough space for the guest image", "NoSpace"}
	ErrBusy         = &kind{"another image is being taken into use", "Busy"}
	ErrNoEarlier    = &kind{"there is no earlier image", "NotFound"}
)

const (
	// stateFile holds the state. Its name, and those of all that is not whole
	// yet, begin with no character that a key begins with.
	stateFile = ".state.json"
	newPrefix = ".new-"
	oldPrefix = ".old-"
	// kept is how many images stay beside those in use.
	kept = 3
	// maxEarlier is how far back one can go, as long as the images are there.
	maxEarlier = 16
)

// keyForm is what an image's key looks like, which becomes a directory's name.
var keyForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._-]{0,63}$`)

// state is what was decided about images. Its zero value means that nothing
// was: then the packaged image is used where it is.
type state struct {
	// Current is the key of the image that new VMs get.
	Current string `json:"current"`
	// Packaged is the key of the packaged image about which was decided last:
	// the same one is not taken into use again without being asked for.
	Packaged string `json:"packaged"`
	// Earlier are the images that were current before, the last one first.
	Earlier []string `json:"earlier,omitempty"`
}

// A Store holds images beneath a directory of its own.
type Store struct {
	dir, packaged string
	log           *slog.Logger
	// turn is held by whoever changes the store.
	turn chan struct{}
	// at is called between the steps of a change; nil but in tests.
	at func(step string)

	mu    sync.Mutex
	state state
}

// Open opens the store in dir, and makes it if need be. packaged is the
// directory of the packaged image. What a predecessor left unfinished is
// removed.
func Open(dir, packaged string, log *slog.Logger) (*Store, error) {
	s := &Store{dir: dir, packaged: packaged, log: log, turn: make(chan struct{}, 1)}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("store of guest images: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("store of guest images: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") && e.Name() != stateFile {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				log.Warn("remove what was left of an unfinished guest image", "err", err)
			}
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err == nil {
		err = json.Unmarshal(text, &s.state)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// VMs start with the packaged image, which beats not starting.
		log.Error("which guest image was in use cannot be told; the packaged one is used", "err", err)
		s.state = state{}
	}
	// The names become paths.
	bad := func(key string) bool { return key != "" && !keyForm.MatchString(key) }
	if bad(s.state.Current) {
		s.state.Current = ""
	}
	s.state.Earlier = slices.DeleteFunc(s.state.Earlier, func(key string) bool { return key == "" || bad(key) })
	return s, nil
}

// Directories lists where an image for a new VM may be, the first that is
// usable being the right one: the current image, the packaged one, and those
// used before.
func (s *Store) Directories() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dirs []string
	if s.state.Current != "" {
		dirs = append(dirs, s.path(s.state.Current))
	}
	dirs = append(dirs, s.packaged)
	for _, key := range s.state.Earlier {
		dirs = append(dirs, s.path(key))
	}
	return dirs
}

func (s *Store) path(key string) string { return filepath.Join(s.dir, key) }

func (s *Store) now() state {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.state
	st.Earlier = slices.Clone(st.Earlier)
	return st
}

// decide makes a state the store's, on disk first.
func (s *Store) decide(st state) error {
	text, err := json.Marshal(st)
	if err == nil {
		err = renameio.WriteFile(filepath.Join(s.dir, stateFile), text, 0o600, renameio.WithTempDir(s.dir))
	}
	if err == nil {
		err = syncDir(s.dir)
	}
	if err != nil {
		return fmt.Errorf("note which guest image is in use: %w", noSpace(err))
	}
	s.mu.Lock()
	s.state = st
	s.mu.Unlock()
	return nil
}

func (s *Store) step(name string) {
	if s.at != nil {
		s.at(name)
	}
}

// begin takes the turn, which end gives back.
func (s *Store) begin() (end func(), err error) {
	select {
	case s.turn <- struct{}{}:
		return func() { <-s.turn }, nil
	default:
		return nil, fmt.Errorf("%w; try again when that is done", ErrBusy)
	}
}

// Update takes the packaged image into use, for VMs that start from now on,
// and says whether that changed anything. An automatic one leaves it alone
// when that was decided about before: it was given up for an earlier one then.
func (s *Store) Update(ctx context.Context, automatic bool) (changed bool, err error) {
	end, err := s.begin()
	if err != nil {
		return false, err
	}
	defer end()
	m, text, err := readManifest(s.packaged)
	if err != nil {
		return false, err
	}
	st := s.now()
	if automatic && m.Key == st.Packaged && m.Key != st.Current {
		return false, nil
	}
	whole := s.whole(m.Key)
	if whole && !automatic { // somebody may ask because it does not work
		whole = m.Check(s.path(m.Key)) == nil
	}
	if whole && m.Key == st.Packaged && m.Key == st.Current {
		return false, nil
	}
	if !whole {
		if err := s.install(ctx, m, text); err != nil {
			return false, err
		}
	}
	return m.Key != st.Current, s.decide(st.choose(m.Key))
}

// choose makes a packaged image the current one.
func (st state) choose(key string) state {
	earlier := st.Earlier
	if st.Current != "" && st.Current != key {
		earlier = append([]string{st.Current}, earlier...)
	}
	earlier = slices.DeleteFunc(earlier, func(k string) bool { return k == key })
	return state{Current: key, Packaged: key, Earlier: earlier[:min(len(earlier), maxEarlier)]}
}

// Rollback goes back to the image that was in use before the current one, and
// says which. It stays until somebody asks for an update or another image is
// packaged.
func (s *Store) Rollback() (key string, err error) {
	end, err := s.begin()
	if err != nil {
		return "", err
	}
	defer end()
	st := s.now()
	for len(st.Earlier) > 0 && !s.whole(st.Earlier[0]) {
		st.Earlier = st.Earlier[1:]
	}
	if len(st.Earlier) == 0 {
		return "", fmt.Errorf("%w that could be used again", ErrNoEarlier)
	}
	st.Current, st.Earlier = st.Earlier[0], st.Earlier[1:]
	// The one that is packaged now is not to come back by itself.
	if m, _, err := readManifest(s.packaged); err == nil {
		st.Packaged = m.Key
	}
	return st.Current, s.decide(st)
}

// whole says whether the store has an image of which no file is missing or has
// another size. It reads no contents: they were checked on the way in.
func (s *Store) whole(key string) bool {
	if !keyForm.MatchString(key) {
		return false
	}
	m, _, err := readManifest(s.path(key))
	if err != nil || m.Key != key {
		return false
	}
	for _, f := range m.Files {
		fi, err := os.Lstat(filepath.Join(s.path(key), f.Name))
		if err != nil || !fi.Mode().IsRegular() || fi.Size() != f.Size {
			return false
		}
	}
	return true
}

// Prune removes old images. The newest stay, and those that are used.
func (s *Store) Prune(used map[string]bool) error {
	end, err := s.begin()
	if err != nil {
		return err
	}
	defer end()
	st := s.now()
	keys := s.keys()
	var errs []error
	for i, key := range keys {
		if i < kept || used[key] || key == st.Current {
			continue
		}
		// Under another name first: half an image is none.
		old := filepath.Join(s.dir, oldPrefix+key)
		if err := os.Rename(s.path(key), old); err != nil {
			errs = append(errs, err)
			continue
		}
		s.step("pruned")
		errs = append(errs, os.RemoveAll(old))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove old guest images: %w", err)
	}
	return nil
}

// keys lists the images in the store, those that came last first.
func (s *Store) keys() []string {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil
	}
	times := map[string]int64{}
	var keys []string
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.IsDir() && keyForm.MatchString(e.Name()) {
			keys = append(keys, e.Name())
			times[e.Name()] = fi.ModTime().UnixNano()
		}
	}
	slices.SortFunc(keys, func(a, b string) int {
		if times[a] != times[b] {
			if times[a] > times[b] {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return keys
}

// readManifest reads the manifest of the image in a directory, and checks that
// its words can be used as names.
func readManifest(dir string) (*image.Manifest, []byte, error) {
	m, err := image.Read(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%w in %s: install the package with the guest image, or see --image-dir", ErrNotInstalled, dir)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if !keyForm.MatchString(m.Key) {
		return nil, nil, fmt.Errorf("%w: %s: the key %.80q is none", ErrDamaged, dir, m.Key)
	}
	missing := []string{image.KernelFile, image.InitramfsFile, image.RootFile}
	for _, f := range m.Files {
		if f.Name == image.ManifestFile || f.Name != filepath.Base(f.Name) || strings.HasPrefix(f.Name, ".") || f.Size < 0 {
			return nil, nil, fmt.Errorf("%w: %s: the manifest names the file %.80q of %d bytes", ErrDamaged, dir, f.Name, f.Size)
		}
		missing = slices.DeleteFunc(missing, func(name string) bool { return name == f.Name })
	}
	if len(missing) > 0 {
		return nil, nil, fmt.Errorf("%w: %s: the manifest does not list %s", ErrDamaged, dir, strings.Join(missing, ", "))
	}
	text, err := json.MarshalIndent(m, "", "  ")
	return m, append(text, '\n'), err
}

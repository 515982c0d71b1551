package tremplin

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/auberge-vm/auberge/guest/tremplin/incus"
	pb "github.com/auberge-vm/auberge/protos/tremplinpb"
)

// Properties of images that are ours.
const (
	shippedKey = "auberge.shipped" // the shipped image; which one
	passingKey = "auberge.passing" // goes with the operation that brought it
)

// maxURL bounds an image server's address.
const maxURL = 2048

var aliasForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+-]{0,254}$`)

// An imageSource is where an image comes from. fetch returns its fingerprint
// once Incus has it; release is to be called when it is no longer needed.
type imageSource interface {
	fetch(ctx context.Context, progress func(percent int32)) (fingerprint string, release func(), err error)
}

// source reads from a request where the image comes from.
func (s *Server) source(req *pb.CreateContainerRequest) (imageSource, error) {
	server, alias := req.ImageServer, req.ImageAlias
	files := req.RootfsPath != "" || req.MetadataPath != ""
	switch {
	case files && (server != "" || alias != ""):
		return nil, errors.New("an image comes either from a server or from files, and both are named")
	case files && (req.RootfsPath == "" || req.MetadataPath == ""):
		return nil, errors.New("an image of files needs both rootfs_path and metadata_path")
	case files:
		return localImage{s: s, rootfs: req.RootfsPath, metadata: req.MetadataPath}, nil
	case server == "" && alias == "":
		return shippedImage{s}, nil
	case server == "" || alias == "":
		return nil, errors.New("an image of a server needs both image_server and image_alias; with neither, the shipped image is used")
	}
	if !aliasForm.MatchString(alias) || strings.Contains(alias, "..") {
		return nil, fmt.Errorf("%.80q cannot be an image's alias", alias)
	}
	address := strings.ReplaceAll(server, "%d", strconv.Itoa(s.cfg.Milestone))
	u, err := url.Parse(address)
	if err != nil || len(address) > maxURL || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil {
		return nil, fmt.Errorf("the image server %.80q is not an address such as https://image.example", server)
	}
	return remoteImage{s: s, server: address, alias: alias}, nil
}

// imageStore knows which images operations use.
type imageStore struct {
	mu       sync.Mutex
	users    map[string]int
	arriving int  // images that operations are getting
	failed   bool // one of them did not arrive, or so it seemed
	// One upload of the shipped image at a time.
	shipping chan struct{}
	// shippedID is that of the files which shippedFiles tells apart.
	shippedFiles, shippedID string
}

func newImageStore() imageStore { return imageStore{shipping: make(chan struct{}, 1)} }

// inUse tells whether an image is, or may be about to be.
func (i *imageStore) inUse(fingerprint string) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.arriving > 0 || i.users[fingerprint] > 0
}

// arrival notes that an operation gets an image. Incus may have got it although
// the operation was cancelled or failed: nobody would know of it, so what
// nobody uses is removed when nothing arrives any more.
func (s *Server) arrival() (end func(error)) {
	s.images.mu.Lock()
	s.images.arriving++
	s.images.mu.Unlock()
	return func(err error) {
		s.images.mu.Lock()
		s.images.arriving--
		s.images.failed = s.images.failed || err != nil
		sweep := s.images.failed && s.images.arriving == 0
		if sweep {
			s.images.failed = false
		}
		s.images.mu.Unlock()
		if sweep {
			s.running.Go(func() {
				ctx, cancel := cleaning()
				defer cancel()
				stop := context.AfterFunc(s.ctx, cancel)
				defer stop()
				if err := s.removeImages(ctx); err != nil {
					s.left.add("old images", err, s.removeImages)
				}
			})
		}
	}
}

func (i *imageStore) hold(fingerprint string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.users == nil {
		i.users = map[string]int{}
	}
	i.users[fingerprint]++
}

// drop returns how many users are left.
func (i *imageStore) drop(fingerprint string) int {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.users[fingerprint]--
	n := i.users[fingerprint]
	if n <= 0 {
		delete(i.users, fingerprint)
	}
	return n
}

// passing holds an image that is removed after its last use, beside whatever
// comes then.
func (s *Server) passing(fingerprint string) (release func()) {
	s.images.hold(fingerprint)
	return func() {
		if s.images.drop(fingerprint) > 0 {
			return
		}
		s.running.Go(func() {
			ctx, cancel := cleaning()
			defer cancel()
			stop := context.AfterFunc(s.ctx, cancel)
			defer stop()
			remove := func(ctx context.Context) error {
				if s.images.inUse(fingerprint) {
					return nil // and whoever uses it removes it
				}
				if i, err := s.incus.Image(ctx, fingerprint); err == nil && i.Properties[shippedKey] != "" {
					return nil // a server or a file had the very same
				}
				return s.incus.DeleteImage(ctx, fingerprint)
			}
			if err := remove(ctx); err != nil && !incus.IsNotFound(err) {
				s.left.add("the image "+fingerprint, err, remove)
			}
		})
	}
}

// removeImages removes what no operation uses: all but the shipped image.
func (s *Server) removeImages(ctx context.Context) error {
	all, err := s.incus.Images(ctx)
	if err != nil {
		return err
	}
	id, _ := s.shippedID()
	for _, i := range all {
		if got := i.Properties[shippedKey]; got != "" && got == id || s.images.inUse(i.Fingerprint) {
			continue
		}
		if one := s.incus.DeleteImage(ctx, i.Fingerprint); one != nil && !incus.IsNotFound(one) {
			err = errors.Join(err, fmt.Errorf("image %s: %w", i.Fingerprint, one))
		}
	}
	return err
}

// shippedImage is the one on the tools disk.
type shippedImage struct{ s *Server }

func (s *Server) shippedPaths() (metadata, rootfs string) {
	dir := filepath.Join(s.cfg.ToolsDir, "image")
	return filepath.Join(dir, "metadata.tar.xz"), filepath.Join(dir, "rootfs.squashfs")
}

// shippedID tells one shipped image from another without reading all of it:
// squashfs has its summary at the beginning and its tables at the end. Even so
// it is worked out once.
func (s *Server) shippedID() (string, error) {
	metadata, rootfs := s.shippedPaths()
	var files []*os.File
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	about := ""
	for _, path := range []string{metadata, rootfs} {
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		files = append(files, f)
		info, err := f.Stat()
		if err != nil {
			return "", err
		}
		about += fmt.Sprintf("%d bytes of %v; ", info.Size(), info.ModTime())
	}
	s.images.mu.Lock()
	known, id := s.images.shippedFiles == about, s.images.shippedID
	s.images.mu.Unlock()
	if known {
		return id, nil
	}
	h := sha256.New()
	for _, f := range files {
		info, err := f.Stat()
		if err != nil {
			return "", err
		}
		const part = 64 << 10
		fmt.Fprintf(h, "%d:", info.Size())
		for _, at := range []int64{0, max(info.Size()-part, 0)} {
			if _, err := io.Copy(h, io.NewSectionReader(f, at, part)); err != nil {
				return "", err
			}
		}
	}
	id = hex.EncodeToString(h.Sum(nil))
	s.images.mu.Lock()
	s.images.shippedFiles, s.images.shippedID = about, id
	s.images.mu.Unlock()
	return id, nil
}

func (i shippedImage) fetch(ctx context.Context, _ func(int32)) (string, func(), error) {
	s := i.s
	id, err := s.shippedID()
	if err != nil {
		return "", nil, fmt.Errorf("this VM has no container image: is its tools disk attached? %w", err)
	}
	select {
	case s.images.shipping <- struct{}{}:
		defer func() { <-s.images.shipping }()
	case <-ctx.Done():
		return "", nil, context.Cause(ctx)
	}
	all, err := s.incus.Images(ctx)
	if err != nil {
		return "", nil, err
	}
	for _, i := range all {
		if i.Properties[shippedKey] == id {
			return i.Fingerprint, func() {}, nil
		}
	}
	m, r := s.shippedPaths()
	metadata, err := os.Open(m)
	if err != nil {
		return "", nil, err
	}
	defer metadata.Close()
	rootfs, err := os.Open(r)
	if err != nil {
		return "", nil, err
	}
	defer rootfs.Close()
	fingerprint, err := s.incus.UploadSplit(ctx, metadata, rootfs, url.Values{shippedKey: {id}}.Encode())
	if err != nil {
		return "", nil, fmt.Errorf("Incus does not take the shipped image: %w", err)
	}
	return fingerprint, func() {}, nil
}

// Command mkinitramfs writes the initramfs of the guest image: a cpio archive
// in the "newc" format of the kernel's Documentation/driver-api/early-userspace/
// buffer-format.rst.
//
//	mkinitramfs -output FILE [-time UNIX] NAME=PATH...
//
// Each NAME=PATH puts the file PATH into the archive as NAME; a PATH that is a
// directory brings the files in it. Everything belongs to root, programs stay
// executable (and must be static), and the same input gives the same bytes.
//
// It is not cpio(1) because an archive made by that can only hold a device node
// (/dev/console, without which init has no stdout) that somebody was allowed to
// make on disk first: root. Images are built by ordinary users too.
package main

import (
	"bufio"
	"debug/elf"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
)

// Mode bits of the archive, which are those of stat(2).
const (
	modeDir  = 0o040000
	modeChar = 0o020000
	modeFile = 0o100000
)

// entry is one member of the archive.
type entry struct {
	name         string // without a leading slash
	mode         uint32 // type and permissions
	source       string // where a file's content comes from
	major, minor uint32 // of a device node
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("mkinitramfs: ")
	output := flag.String("output", "", "the archive to write")
	mtime := flag.Int64("time", 0, "modification time of every entry, in seconds since 1970")
	flag.Parse()
	if *output == "" || flag.NArg() == 0 {
		log.Fatal("usage: mkinitramfs -output FILE [-time UNIX] NAME=PATH...")
	}
	if err := run(*output, *mtime, flag.Args()); err != nil {
		log.Fatal(err)
	}
}

func run(output string, mtime int64, args []string) error {
	entries, err := plan(args)
	if err != nil {
		return err
	}
	f, err := os.Create(output)
	if err != nil {
		return err
	}
	defer f.Close()
	w := bufio.NewWriterSize(f, 1<<20)
	if err := write(w, entries, mtime); err != nil {
		return fmt.Errorf("%s: %w", output, err)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Close()
}

// plan turns NAME=PATH arguments into the whole list of members, directories
// before what is in them.
func plan(args []string) ([]entry, error) {
	all := map[string]entry{}
	add := func(e entry) {
		for dir := path.Dir(e.name); dir != "."; dir = path.Dir(dir) {
			all[dir] = entry{name: dir, mode: modeDir | 0o755}
		}
		all[e.name] = e
	}

	// What stage one of init mounts on, and its console.
	for _, dir := range []string{"dev", "proc", "sys", "run"} {
		add(entry{name: dir, mode: modeDir | 0o755})
	}
	add(entry{name: "dev/console", mode: modeChar | 0o600, major: 5, minor: 1})

	for _, arg := range args {
		name, source, ok := strings.Cut(arg, "=")
		name = strings.Trim(path.Clean(name), "/")
		if !ok || source == "" || name == "" || name == "." || strings.HasPrefix(name, "..") {
			return nil, fmt.Errorf("%q is not NAME=PATH", arg)
		}
		files, err := filesOf(name, source)
		if err != nil {
			return nil, err
		}
		for _, e := range files {
			add(e)
		}
	}

	entries := make([]entry, 0, len(all))
	for _, e := range all {
		entries = append(entries, e)
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].name < entries[j].name })
	return entries, nil
}

// filesOf lists the members that one argument stands for.
func filesOf(name, source string) ([]entry, error) {
	info, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if info.Mode().IsRegular() {
		e, err := fileEntry(name, source, info)
		return []entry{e}, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("%s is neither a file nor a directory", source)
	}
	children, err := os.ReadDir(source)
	if err != nil {
		return nil, err
	}
	var entries []entry
	for _, child := range children {
		sub, err := filesOf(path.Join(name, child.Name()), filepath.Join(source, child.Name()))
		if err != nil {
			return nil, err
		}
		entries = append(entries, sub...)
	}
	return entries, nil
}

func fileEntry(name, source string, info os.FileInfo) (entry, error) {
	if info.Mode()&0o111 == 0 {
		return entry{name: name, mode: modeFile | 0o644, source: source}, nil
	}
	if err := checkStatic(source); err != nil {
		return entry{}, err
	}
	return entry{name: name, mode: modeFile | 0o755, source: source}, nil
}

// checkStatic refuses a program that an initramfs cannot run, as it has no
// dynamic linker: the kernel would only say that there is no init.
func checkStatic(file string) error {
	f, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("%s is not a program: %w", file, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is dynamically linked: build it with CGO_ENABLED=0", file)
		}
	}
	return nil
}

// write writes the archive with its trailer.
func write(w io.Writer, entries []entry, mtime int64) error {
	for i, e := range entries {
		if err := writeEntry(w, e, i+1, mtime); err != nil {
			return fmt.Errorf("%s: %w", e.name, err)
		}
	}
	return writeHeader(w, entry{name: "TRAILER!!!"}, 0, 0, 0)
}

func writeEntry(w io.Writer, e entry, inode int, mtime int64) error {
	if e.source == "" {
		return writeHeader(w, e, inode, mtime, 0)
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	size := info.Size()
	if size > 1<<32-1 {
		return fmt.Errorf("%d bytes is more than the format holds", size)
	}
	if err := writeHeader(w, e, inode, mtime, size); err != nil {
		return err
	}
	// A file that shrinks meanwhile is an error, one that grows is cut: the
	// header is already out.
	if _, err := io.CopyN(w, f, size); err != nil {
		return err
	}
	return pad(w, int(size%4))
}

func writeHeader(w io.Writer, e entry, inode int, mtime, size int64) error {
	links := 1
	if e.mode&modeDir != 0 {
		links = 2
	}
	n, err := fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		inode, e.mode, 0, 0, links, uint32(mtime), size, 0, 0, e.major, e.minor, len(e.name)+1, 0, e.name)
	if err != nil {
		return err
	}
	return pad(w, n%4)
}

// pad fills up to the next multiple of 4, over bytes past the last one.
func pad(w io.Writer, over int) error {
	if over == 0 {
		return nil
	}
	_, err := w.Write(make([]byte, 4-over))
	return err
}

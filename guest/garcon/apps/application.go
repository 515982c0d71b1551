package apps

import (
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/auberge-vm/auberge/guest/garcon/desktop"
	pb "github.com/auberge-vm/auberge/protos/containerpb"
)

const (
	// maxMessage is what the host takes of a list, 2 MiB, less room for the token and
	// more.
	maxMessage = 2<<20 - 64<<10
	// maxApplication bounds one application in the list.
	maxApplication = 64 << 10
	// maxCrowded is the bound when there are so many that their texts alone
	// would fill the memory.
	maxCrowded = 4 << 10
	crowded    = 8 << 20
	// maxRead bounds what is read of .desktop files for one list.
	maxRead = 256 << 20
	// fieldSize is what a field of the list costs beside the application.
	fieldSize = 8
)

// application is what the host hears of an entry.
func application(id string, e *desktop.Entry) *pb.Application {
	a := &pb.Application{
		DesktopFileId:      id,
		Name:               localized(e.Name),
		Comment:            localized(e.Comment),
		MimeTypes:          e.MimeTypes,
		NoDisplay:          e.NoDisplay,
		StartupWmClass:     e.WMClass,
		StartupNotify:      e.StartupNotify,
		ExecutableFileName: e.Program(),
		Exec:               e.Exec,
		Terminal:           e.Terminal,
	}
	if len(e.Keywords) > 0 {
		a.Keywords = &pb.Application_LocaleStrings{}
		for _, locale := range slices.Sorted(maps.Keys(e.Keywords)) {
			a.Keywords.Values = append(a.Keywords.Values, &pb.Application_LocaleStrings_StringsWithLocale{Locale: locale, Value: e.Keywords[locale]})
		}
	}
	return a
}

func localized(t desktop.Text) *pb.Application_LocalizedString {
	if len(t) == 0 {
		return nil
	}
	s := &pb.Application_LocalizedString{}
	for _, locale := range slices.Sorted(maps.Keys(t)) {
		s.Values = append(s.Values, &pb.Application_LocalizedString_StringWithLocale{Locale: locale, Value: t[locale]})
	}
	return s
}

// cuts are what an application loses when there is no room, the least missed
// first.
var cuts = []func(*pb.Application){
	func(a *pb.Application) { onlyDefault(a.Comment) },
	func(a *pb.Application) {
		if a.Keywords != nil && len(a.Keywords.Values) > 1 {
			a.Keywords.Values = a.Keywords.Values[:1]
		}
	},
	func(a *pb.Application) { onlyDefault(a.Name) },
	func(a *pb.Application) { a.Comment, a.Keywords = nil, nil },
	func(a *pb.Application) { a.Exec, a.StartupWmClass = "", "" },
	func(a *pb.Application) { a.MimeTypes = a.MimeTypes[:min(len(a.MimeTypes), 16)] },
}

// onlyDefault leaves the text without a locale, which sorts first.
func onlyDefault(s *pb.Application_LocalizedString) {
	if s != nil && len(s.Values) > 1 {
		s.Values = s.Values[:1]
	}
}

// fit cuts one application down, and says whether it is small enough then.
func fit(a *pb.Application, most int) bool {
	for _, cut := range cuts {
		if proto.Size(a) <= most {
			return true
		}
		cut(a)
	}
	return proto.Size(a) <= most
}

// fitAll cuts a list down to a message, all applications alike; only then
// those go that come last.
func fitAll(list []*pb.Application) (kept []*pb.Application, lost int) {
	size := func() (n int) {
		for _, a := range list {
			n += proto.Size(a) + fieldSize
		}
		return n
	}
	for _, cut := range cuts {
		if size() <= maxMessage {
			return list, 0
		}
		for _, a := range list {
			cut(a)
		}
	}
	n := 0
	for i, a := range list {
		if n += proto.Size(a) + fieldSize; n > maxMessage {
			return list[:i], len(list) - i
		}
	}
	return list, 0
}

// gather makes the list of what is in a tree, and the file of each
// application.
func gather(t *tree, path string, warn func(msg string, args ...any)) (list []*pb.Application, files map[string]file) {
	taken := map[string]bool{}
	files = map[string]file{}
	var read, size int64
	for _, f := range t.files {
		if taken[f.id] {
			continue
		}
		if f.info.Size() <= desktop.MaxFile {
			read += f.info.Size()
		}
		if read > maxRead {
			warn("there is too much in .desktop files, the rest is left out", "bytes", read)
			break
		}
		e, err := desktop.Load(f.path)
		if err != nil {
			warn("a .desktop file is left out", "err", err)
			continue
		}
		// A file that hides its application hides those that come later too.
		taken[f.id] = true
		if !e.Shown(path) {
			continue
		}
		a := application(f.id, e)
		most := maxApplication
		if size > crowded {
			most = maxCrowded
		}
		if !fit(a, most) {
			warn("an application is left out: what is to be said of it is too long", "id", f.id)
			continue
		}
		size += int64(proto.Size(a))
		list = append(list, a)
		files[f.id] = f
	}
	slices.SortFunc(list, func(a, b *pb.Application) int { return strings.Compare(a.DesktopFileId, b.DesktopFileId) })
	list, lost := fitAll(list)
	if t.full || lost > 0 {
		warn("there are more applications than the host is told of", "told", len(list), "of these left out", lost)
	}
	return list, files
}

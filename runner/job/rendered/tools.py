"""Shell functions by which a place packs, unpacks and moves archives with what it has.

Needed are ``find`` and ``awk`` to choose files, ``zip`` (or ``bsdtar``) and ``unzip`` (or ``bsdtar``), ``curl`` to move
archives, and ``tar`` with ``zstd`` for archives of that kind. Secrets reach ``curl`` on its standard input, never as
arguments. Functions that may fail are called in conditions, where a shell ignores ``errexit``: each says itself where it
ends.
"""

from __future__ import annotations

# Lines of the form that the helper program of the reference prints; they go to standard error as its do.
SAY = r"""pyrunner_has() { command -v "$1" >/dev/null 2>&1; }
pyrunner_say() {
case $1 in
info) printf '%-50s\033[0;m \n' "$2" ;;
warning) printf '\033[0;33mWARNING: %-41s\033[0;m \n' "$2" ;;
error) printf '\033[31;1mERROR: %-43s\033[0;m \n' "$2" ;;
*) printf '\033[31;1mFATAL: %-43s\033[0;m \n' "$2" ;;
esac >&2
}
"""

# Reads patterns (a letter, a tab, a pattern: i include, x exclude), names that git does not track, and from its standard
# input what is there; writes what is chosen and what there is to say.
_CHOOSE = r"""
function lit(c) {
  if (c ~ /[A-Za-z0-9_\/ -]/) return c
  if (c == "^" || c == "\\") return "\\" c
  return "[" c "]"
}
function clean(p,  n, part, i, k, whole) {
  whole = (substr(p, 1, 1) == "/"); n = split(p, part, "/"); k = 0
  for (i = 1; i <= n; i++) {
    if (part[i] == "" || part[i] == ".") continue
    if (part[i] == ".." && k > 0 && kept[k] != "..") { k--; continue }
    if (part[i] == ".." && whole) continue
    kept[++k] = part[i]
  }
  p = ""
  for (i = 1; i <= k; i++) p = p (i > 1 ? "/" : "") kept[i]
  if (whole) return "/" p
  return p == "" ? "." : p
}
function inside(p) {
  p = clean(substr(p, 1, 1) == "/" ? p : root "/" p)
  if (p == root) return "."
  return index(p, root "/") == 1 ? substr(p, length(root) + 2) : ""
}
function literal(p,  i, re) {
  re = ""
  for (i = 1; i <= length(p); i++) re = re lit(substr(p, i, 1))
  return re
}
function class(p, i,  c, text, not) {
  not = ""; text = ""; i++
  c = substr(p, i, 1)
  if (c == "!" || c == "^") { not = "^/"; i++ }
  for (; i <= length(p); i++) {
    c = substr(p, i, 1)
    if (c == "]" && text != "") { at = i; return "[" not text "]" }
    if (c == "\\") { i++; c = substr(p, i, 1) }
    if (c == "\\" || c == "[" || (c == "^" && text == "")) c = "\\" c
    text = text c
  }
  bad = 1
  return ""
}
function alone(p, i, n) {
  return (i == 1 || substr(p, i - 1, 1) == "/") && (i + 1 == n || substr(p, i + 2, 1) == "/")
}
function glob(p,  re, n, c, deep) {
  n = length(p); re = ""; deep = 0; bad = 0
  if (p == "." || p == "**") return ".*"
  for (at = 1; at <= n; at++) {
    c = substr(p, at, 1)
    if (c == "\\") {
      if (++at > n) { bad = 1; return "" }
      re = re lit(substr(p, at, 1))
    } else if (substr(p, at, 2) == "**" && alone(p, at, n)) {
      if (at + 1 == n) { sub(/\/$/, "", re); re = re "(/.*)?"; at++ }
      else { re = re "(.*/)?"; at += 2 }
    } else if (c == "*") {
      while (substr(p, at + 1, 1) == "*") at++
      re = re "[^/]*"
    } else if (c == "?") re = re "[^/]"
    else if (c == "[") re = re class(p, at)
    else if (c == "{") { re = re "("; deep++ }
    else if (c == "}" && deep) { re = re ")"; deep-- }
    else if (c == "," && deep) re = re "|"
    else re = re lit(c)
    if (bad) return ""
  }
  if (deep) bad = 1
  return re
}
function say(level, text) {
  if (level == "info") printf "%-50s\033[0;m \n", text > report
  else printf "\033[0;33mWARNING: %-41s\033[0;m \n", text > report
}
BEGIN {
  root = ENVIRON["PYRUNNER_ROOT"]; dir = ENVIRON["PYRUNNER_DIR"]; report = dir "/report"; list = dir "/list"
  nothing = ": no matching files. Ensure that the artifact path is relative to the working directory ("
  printf "" > report; printf "" > list
  while ((getline line < (dir "/patterns")) > 0) {
    kind = substr(line, 1, 1); text = substr(line, 3)
    path = text == "" ? "" : inside(text)
    if (kind != "x") {
      shown[++wanted] = text
      if (text == "") note[wanted] = "No matching files. Path is empty."
      else if (path == "") note[wanted] = "processPath: artifact path is not a subpath of project directory: " text
      else if (kind != "m") {
        bad = 0
        pattern[wanted] = "^(" (kind == "l" ? literal(path) : glob(path)) ")(/.*)?$"
        if (bad) { note[wanted] = text ": syntax error in pattern"; pattern[wanted] = "" }
      }
    } else if (kind == "x" && text != "") {
      if (path == "") { apart[++outside] = text; continue }
      expression = "^(" glob(path) ")$"
      if (!bad) { refused[++without] = expression; refused_text[without] = text }
    }
  }
  while ((getline line < (dir "/untracked")) > 0) if (line != "") { loose["./" line] = 1; loose_count++ }
}
{
  path = $0; sub(/^\.\//, "", path)
  chosen = ($0 in loose); found = 0
  for (i = 1; i <= wanted; i++) if (pattern[i] != "" && path ~ pattern[i]) { hit[++found] = i; chosen = 1 }
  if (!chosen) next
  for (i = 1; i <= without; i++) if (path ~ refused[i]) { dropped[i]++; chosen = 0 }
  if (!chosen) next
  for (i = 1; i <= found; i++) count[hit[i]]++
  if (path != ".") print $0 > list
  else print > (dir "/whole")
}
END {
  for (i = 1; i <= wanted; i++) {
    if (note[i] != "") say("warning", note[i])
    else if (count[i]) say("info", shown[i] ": found " count[i] " matching artifact files and directories")
    else say("warning", shown[i] nothing root ")")
  }
  if (ENVIRON["PYRUNNER_UNTRACKED"] != "") {
    if (loose_count) say("info", "untracked: found " loose_count " files")
    else say("warning", "untracked: no files")
  }
  for (i = 1; i <= without; i++) if (dropped[i]) say("info", refused_text[i] ": excluded " dropped[i] " files")
  for (i = 1; i <= outside; i++) say("warning", "isExcluded: artifact path is not a subpath of project directory: " apart[i])
}
"""

# ``pyrunner_pattern`` adds a pattern, ``pyrunner_choose`` writes the list of files. Names with line breaks are left out.
# The project directory itself is in no list: where it is chosen there is a file ``whole``.
CHOOSE = (
    r"""pyrunner_begin() {
pyrunner_remove "$pyrunner_dir"
(umask 077; mkdir -p "$pyrunner_dir")
: >"$pyrunner_dir/patterns"; : >"$pyrunner_dir/untracked"
pyrunner_untracked=
}
pyrunner_pattern() {
pyrunner_kind=$1
if [ "$1" = i ]; then
case $2 in
*[*?[{]*) ;;
*\\*) [ ! -e "$2" ] || pyrunner_kind=l ;;
*) [ -e "$2" ] || pyrunner_kind=m ;;
esac
fi
printf '%s\t%s\n' "$pyrunner_kind" "$2" >>"$pyrunner_dir/patterns"
}
pyrunner_loose() {
pyrunner_untracked=1
if git -c core.hooksPath=/dev/null -c core.fsmonitor=false ls-files -o -z >"$pyrunner_dir/names"; then
tr '\n\000' '?\n' <"$pyrunner_dir/names" >"$pyrunner_dir/untracked"
else
pyrunner_say warning "untracked: exit status $?"
pyrunner_untracked=
fi
}
pyrunner_choose() {
find . \( -type f -o -type d -o -type l \) ! -path '*
*' -print | PYRUNNER_ROOT=$PWD PYRUNNER_DIR=$pyrunner_dir PYRUNNER_UNTRACKED=$pyrunner_untracked awk "$pyrunner_awk" || return 1
[ -n "$1" ] || cat "$pyrunner_dir/report" >&2
[ -s "$pyrunner_dir/list" ]
}
pyrunner_awk='"""
    + _CHOOSE.replace("'", "'\\''")
    + "'\n"
)

# ``pyrunner_pack <format> <file>``: the chosen files. The level of compression is the one that the job names.
PACK = r"""pyrunner_level() {
case $(printf '%s' "$1" | tr '[:upper:]' '[:lower:]') in
fastest) echo -1 ;;
fast) echo -3 ;;
slow) echo -7 ;;
slowest) echo -9 ;;
*)
case $(printf '%s' "$1" | tr '[:upper:]' '[:lower:]') in
'' | default) ;;
*) pyrunner_say warning "compression level \"$1\" is invalid, falling back to default" ;;
esac
echo -6
;;
esac
}
pyrunner_zip() {
if pyrunner_has zip; then
zip -q -y "$2" "$1" -@ <"$pyrunner_dir/list" >"$pyrunner_dir/said" 2>&1
case $? in 0 | 12 | 18) return 0 ;; esac
cat "$pyrunner_dir/said" >&2
return 1
fi
bsdtar -c -n --format zip -f "$1" -T "$pyrunner_dir/list" >&2
}
pyrunner_unpackable() {
[ -z "${pyrunner_doing-}" ] || pyrunner_say error "$pyrunner_doing error"
pyrunner_say fatal "$1"
}
pyrunner_pack() {
pyrunner_quick=$(pyrunner_level "$3")
rm -f -- "$2"
case $1 in
zip | zipzstd) pyrunner_zip "$2" "$pyrunner_quick" ;;
tarzstd)
tar -c -f - --no-recursion -T "$pyrunner_dir/list" >"$pyrunner_dir/tar" && zstd -q "$pyrunner_quick" -o "$2" "$pyrunner_dir/tar"
;;
gzip)
while IFS= read -r pyrunner_file; do
if [ ! -f "$pyrunner_file" ] || [ -L "$pyrunner_file" ]; then
pyrunner_unpackable "the \"${pyrunner_file#./}\" is not a regular file"
return 1
fi
gzip -c "$pyrunner_quick" "$pyrunner_file" >>"$2" || return 1
done <"$pyrunner_dir/list"
;;
raw)
pyrunner_file=$(cat "$pyrunner_dir/list")
if [ ! -f "$pyrunner_file" ] || [ -L "$pyrunner_file" ]; then
pyrunner_unpackable 'only one file can be sent as raw'
return 1
fi
cp "$pyrunner_file" "$2"
;;
*)
pyrunner_unpackable "\"$1\" format: unsupported archive format"
return 1
;;
esac
}
"""

# ``pyrunner_unpack <file>``: over what is in the directory.
UNPACK = r"""pyrunner_unpack() {
case $(head -c 4 "$1" | od -An -tx1 | tr -d ' \n') in
504b0304 | 504b0506)
if pyrunner_has unzip; then
pyrunner_file=$(unzip -l "$1" 2>/dev/null |
sed -n -e 's/^[ 0-9:-]* \(\.\.\/.*\)$/\1/p' -e '/\/\.\.\//s/^[ 0-9:-]* //p' | head -n 1)
if [ -n "$pyrunner_file" ]; then
pyrunner_place=$PWD
while [ "$pyrunner_file" != "${pyrunner_file#../}" ]; do
pyrunner_file=${pyrunner_file#../}
pyrunner_place=${pyrunner_place%/*}
done
pyrunner_say fatal "$pyrunner_place/$pyrunner_file cannot be extracted outside of chroot ($PWD)"
return 1
fi
unzip -q -o "$1" >"$pyrunner_dir/said" 2>&1
case $? in 0 | 1) return 0 ;; esac
else
bsdtar -x -f "$1" && return 0
fi
pyrunner_say fatal 'zip: not a valid zip file'
return 1
;;
28b52ffd) zstd -q -d -c "$1" | tar -x -f - ;;
1f8b*)
pyrunner_say fatal '"gzip" format: unsupported archive format'
return 1
;;
*)
pyrunner_say fatal 'zip: not a valid zip file'
return 1
;;
esac
}
"""

# ``pyrunner_call <url> <file for the answer> [options of curl]``: 1 where there is no answer. ``pyrunner_login`` is sent
# as the job's token; the certificates of the job's variables count for GitLab alone.
CALL = r"""pyrunner_call() {
pyrunner_url=$1 pyrunner_answer=$2 pyrunner_status=0
shift 2
if [ -n "$pyrunner_login" ]; then
[ -z "${CI_SERVER_TLS_CA_FILE-}" ] || set -- "$@" --cacert "$CI_SERVER_TLS_CA_FILE"
[ -z "${CI_SERVER_TLS_CERT_FILE-}" ] || set -- "$@" --cert "$CI_SERVER_TLS_CERT_FILE"
[ -z "${CI_SERVER_TLS_KEY_FILE-}" ] || set -- "$@" --key "$CI_SERVER_TLS_KEY_FILE"
fi
: >"$pyrunner_dir/head"
if ! {
printf 'url = "%s"\n' "$pyrunner_url"
[ -z "$pyrunner_login" ] || printf 'header = "JOB-TOKEN: %s"\n' "$pyrunner_login"
} | curl -q -g -sS -K - -A "$pyrunner_agent" -H 'Expect:' --connect-timeout 30 -D "$pyrunner_dir/head" -o "$pyrunner_answer" \
"$@" 2>"$pyrunner_dir/problem"; then
pyrunner_said=$(sed -n '1s/^curl: ([0-9]*) //p' "$pyrunner_dir/problem")
return 1
fi
pyrunner_said=$(tr -d '\r' <"$pyrunner_dir/head" | sed -n 's/^HTTP\/[0-9.]* //p' | tail -n 1)
pyrunner_status=${pyrunner_said%% *}
case $pyrunner_said in
200 | '200 ') pyrunner_said='200 OK' ;;
201 | '201 ') pyrunner_said='201 Created' ;;
403 | '403 ') pyrunner_said='403 Forbidden' ;;
404 | '404 ') pyrunner_said='404 Not Found' ;;
503 | '503 ') pyrunner_said='503 Service Unavailable' ;;
esac
}
pyrunner_reason() {
pyrunner_code=$(sed -n 's/.*<Code>\([^<]*\)<.*/\1/p' "$1" 2>/dev/null | head -n 1)
pyrunner_text=$(sed -n 's/.*<Message>\([^<]*\)<.*/\1/p' "$1" 2>/dev/null | head -n 1)
pyrunner_said="received: $pyrunner_said"
[ -z "$pyrunner_code" ] || pyrunner_said="$pyrunner_said. Request failed with code: $pyrunner_code, message: $pyrunner_text"
}
pyrunner_location() { tr -d '\r' <"$pyrunner_dir/head" | sed -n 's/^[Ll]ocation: *//p' | tail -n 1 | sed 's/[\\"]/\\&/g'; }
"""

# ``pyrunner_send <file> <name> <url> <what is done>``: an archive of artifacts to GitLab.
SEND = r"""pyrunner_base() {
pyrunner_name=${1:-.}
while [ "$pyrunner_name" != "${pyrunner_name%/}" ]; do pyrunner_name=${pyrunner_name%/}; done
pyrunner_name=${pyrunner_name##*/}
[ "$pyrunner_name" != . ] || pyrunner_name=default
}
pyrunner_send() {
pyrunner_name=$(printf '%s' "$2" | sed 's/[\\"]/\\&/g')
pyrunner_target=$3 pyrunner_try=1
while :; do
pyrunner_tries=3 pyrunner_why='upload failed with no response from coordinator'
if pyrunner_call "$pyrunner_target" "$pyrunner_dir/body" --max-time "$pyrunner_limit" \
-F "file=@\"$1\";filename=\"$pyrunner_name\";type=application/octet-stream"; then
pyrunner_told=$(sed -n 's/.*"message" *: *"\([^"]*\)".*/\1/p' "$pyrunner_dir/body" 2>/dev/null | head -n 1)
if [ "$pyrunner_status" != 201 ] && [ -n "$pyrunner_told" ]; then
pyrunner_said="POST ${pyrunner_target%%\?*}: $pyrunner_said ($pyrunner_told)"
fi
case $pyrunner_status in
201) pyrunner_say info "$4 $pyrunner_said"; return 0 ;;
403) pyrunner_say error "$4 $pyrunner_said"; pyrunner_say fatal 'permission denied'; return 1 ;;
413) pyrunner_say error "$4 $pyrunner_said"; pyrunner_say fatal 'too large'; return 1 ;;
401 | 404 | 405) pyrunner_say warning "$4 $pyrunner_said"; pyrunner_say fatal "$pyrunner_why"; return 1 ;;
503) pyrunner_say error "$4 $pyrunner_said"; pyrunner_tries=6 pyrunner_why='service unavailable' ;;
307)
pyrunner_place=$(pyrunner_location)
pyrunner_host=$(printf '%s' "$pyrunner_target" | sed 's#^\(https*://[^/]*\).*#\1#')
case $pyrunner_place in
/*) pyrunner_place=$pyrunner_host$pyrunner_place ;;
"$pyrunner_host"/*) ;;
*) pyrunner_place= ;;
esac
if [ -n "$pyrunner_place" ] && [ "$pyrunner_try" -lt 3 ]; then
pyrunner_target=$pyrunner_place pyrunner_try=$((pyrunner_try + 1))
continue
fi
pyrunner_say error "$4 $pyrunner_said empty location"
;;
*) pyrunner_say warning "$4 $pyrunner_said" ;;
esac
else
pyrunner_why=$pyrunner_said
pyrunner_say error "$4 error"
fi
if [ "$pyrunner_try" -ge "$pyrunner_tries" ]; then
pyrunner_say fatal "$pyrunner_why"
return 1
fi
pyrunner_say warning 'Retrying...'
case $pyrunner_try in 1) sleep 1 ;; 2) sleep 2 ;; 3) sleep 4 ;; *) sleep 5 ;; esac
pyrunner_try=$((pyrunner_try + 1))
done
}
"""

# ``pyrunner_get <url> <file> <direct>``: the archive of another job.
GET = r"""pyrunner_get() {
pyrunner_doing='Downloading artifacts from coordinator...'
pyrunner_token=$pyrunner_login pyrunner_ask=$1 pyrunner_try=1
[ -z "$3" ] || pyrunner_ask=$1?direct_download=true
while :; do
pyrunner_login=$pyrunner_token
if pyrunner_call "$pyrunner_ask" "$2"; then
case $pyrunner_status in
301 | 302 | 303 | 307 | 308)
pyrunner_place=$(pyrunner_location)
pyrunner_host=$(printf '%s' "$pyrunner_place" | sed -n 's#^https*://\([^/]*\).*#\1#p')
pyrunner_say info "Direct download from ${pyrunner_host##*@}"
pyrunner_login=
pyrunner_call "$pyrunner_place" "$2" || pyrunner_status=-1
;;
esac
case $pyrunner_status in
200) pyrunner_say info "$pyrunner_doing ok"; return 0 ;;
401) pyrunner_say error "$pyrunner_doing unauthorized"; pyrunner_say fatal 'permission denied'; return 1 ;;
403) pyrunner_say error "$pyrunner_doing forbidden"; pyrunner_say fatal 'permission denied'; return 1 ;;
404) pyrunner_say error "$pyrunner_doing not found"; pyrunner_say fatal 'file does not exist'; return 1 ;;
*) pyrunner_say warning "$pyrunner_doing failed" ;;
esac
else
pyrunner_say error "$pyrunner_doing error"
fi
if [ "$pyrunner_try" -ge 3 ]; then
pyrunner_say fatal 'invalid argument'
return 1
fi
pyrunner_say warning 'Retrying...'
sleep 1
pyrunner_ask=$1 pyrunner_try=$((pyrunner_try + 1))
done
}
"""

# ``pyrunner_fetch <file> <signed url> <url to show>`` and ``pyrunner_store`` with the same: an archive of a cache.
CACHE_CALLS = r"""pyrunner_fetch() {
pyrunner_login= pyrunner_try=1
(umask 077; mkdir -p "${1%/*}") || return 1
while :; do
pyrunner_say info 'Using presigned URL for cache download'
pyrunner_part=$1.$$
rm -f -- "$pyrunner_part"
if [ -f "$1" ]; then set -- "$1" "$2" "$3" -z "$1"; else set -- "$1" "$2" "$3"; fi
pyrunner_source=$2 pyrunner_shown=$3 pyrunner_archive=$1
shift 3
if pyrunner_call "$pyrunner_source" "$pyrunner_part" -R --max-time "$pyrunner_limit" "$@"; then
case $pyrunner_status in
304) pyrunner_say info 'cache.zip is up to date'; rm -f -- "$pyrunner_part"; return 0 ;;
200)
if [ ! -s "$pyrunner_part" ]; then pyrunner_say info 'cache.zip is up to date'; return 0; fi
pyrunner_say info "Downloading cache from $pyrunner_shown"
chmod 600 "$pyrunner_part" && mv -f -- "$pyrunner_part" "$pyrunner_archive"
return
;;
404) rm -f -- "$pyrunner_part"; pyrunner_say warning 'file does not exist'; return 1 ;;
5*) ;;
*) pyrunner_reason "$pyrunner_part"; rm -f -- "$pyrunner_part"; pyrunner_say warning "$pyrunner_said"; return 1 ;;
esac
pyrunner_reason "$pyrunner_part"
fi
rm -f -- "$pyrunner_part"
if [ "$pyrunner_try" -ge 3 ]; then pyrunner_say warning "$pyrunner_said"; return 1; fi
pyrunner_say warning 'Retrying...'
sleep 1
pyrunner_try=$((pyrunner_try + 1))
set -- "$pyrunner_archive" "$pyrunner_source" "$pyrunner_shown"
done
}
pyrunner_store() {
pyrunner_login= pyrunner_try=1
while :; do
pyrunner_say info 'Using presigned URL for cache upload'
pyrunner_say info "Uploading cache.zip to $3"
if pyrunner_call "$2" "$pyrunner_dir/body" --max-time "$pyrunner_limit" -H 'Content-Type: application/octet-stream' -T "$1"; then
case $pyrunner_status in
200 | 201) return 0 ;;
5*) ;;
*) pyrunner_reason "$pyrunner_dir/body"; pyrunner_say fatal "$pyrunner_said"; return 1 ;;
esac
pyrunner_reason "$pyrunner_dir/body"
fi
if [ "$pyrunner_try" -ge 3 ]; then pyrunner_say fatal "$pyrunner_said"; return 1; fi
pyrunner_say warning 'Retrying...'
sleep 1
pyrunner_try=$((pyrunner_try + 1))
done
}
"""
